"""Files over HTTP: resumed after a break, within limits, and put in their place only when complete."""

from __future__ import annotations

import contextlib
import errno
import random
import re
import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from condconv_serve import __version__
from condconv_serve.errors import ConfigurationError, DownloadFailed
from condconv_serve.retry_after import seconds_to_wait
from condconv_serve.store.pull.reach import check_reachable, unreachable
from condconv_serve.store.pull.responses import meaning_of, number, origin_of, reason_of, validator_of

_TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CONTENT_RANGE: Final = re.compile(r"^bytes (?P<first>\d+)-\d+/(?P<total>\d+|\*)$")
_UNSATISFIED_RANGE: Final = re.compile(r"^bytes \*/(?P<total>\d+)$")
_LATER_CONNECT_TIMEOUT: Final = 10.0
"""For connections after the first, such as those that a redirect leads to."""
_GAIN: Final = 64 * 2**10
"""After this many new bytes a broken connection counts as a first failure again, since there is progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is downloaded, and how patiently. Times in seconds."""

    max_bytes: int = 2 * 2**30
    connect_timeout: float = 1.5
    """In which there must be a connection to the first server, name lookup included. It is not tried again."""
    stall_timeout: float = 30.0
    """If fewer than `stall_bytes` come in this time, another connection is tried."""
    stall_bytes: int = 4 * 2**10
    attempts: int = 6
    """The download fails after so many failures in a row without much progress."""
    pause: float = 1.0
    """Before the second attempt; doubled before each further one."""
    longest_pause: float = 30.0


class Reporter(Protocol):
    """Is told about the progress of a download."""

    def received(self, count: int, total: int | None) -> None:
        """`count` bytes are there, of `total` if that is known."""

    def note(self, text: str) -> None:
        """Something happened that explains a wait."""


class Silence:
    """A reporter that says nothing."""

    def received(self, count: int, total: int | None) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


def download(
    url: str, target: Path, *, size: int | None = None, limits: Limits | None = None, reporter: Reporter | None = None
) -> Path:
    """Download a file unless it is there already.

    What was received stays beside the target as `<name>.part` when this fails or is killed, and the next call goes on
    from there if the server still has the same file. Only one process at a time may download to a target.

    Args:
        url: http or https. Redirects are followed, but not from https to http. Proxies are those of the environment.
        target: where the file goes, whole or not at all.
        size: bytes that it must have, if known.
        limits: of size and patience.
        reporter: is told how it gets on.

    Returns:
        `target`.

    Raises:
        Unreachable: there is no way to the server.
        DownloadFailed: says what the server or the network did, and what is kept.
        OSError: the directory can't be written.
    """
    limits, reporter = limits or Limits(), reporter or Silence()
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file():
        return target
    part = _Part(target)
    with _client(url, limits) as client:
        proxy = _check_reachable(client, url, limits)
        _until_whole(_Attempt(client, url, proxy, part, size, limits, reporter))
    part.finish(target)
    return target


def fetch_small(url: str, *, max_bytes: int, limits: Limits) -> bytes:
    """Fetch a small document in one go.

    Raises:
        Unreachable: there is no way to the server.
        DownloadFailed: there is no answer, none with status 200, or a larger one.
    """
    name = shown(url)
    body = bytearray()
    try:
        with _client(url, limits) as client:
            _check_reachable(client, url, limits)
            with client.stream("GET", url) as response:
                if response.status_code != 200:
                    raise DownloadFailed(f"{name} answers with status {response.status_code}.")
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > max_bytes:
                        raise DownloadFailed(f"{name} has more than {max_bytes} bytes, the most allowed.")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DownloadFailed(f"{name} can't be read: {reason_of(error)}.") from error
    return bytes(body)


def reach(url: str, limits: Limits) -> None:
    """Find out whether there is a way to a server.

    Raises:
        Unreachable: there is none.
        DownloadFailed: no request can be made to this URL.
    """
    with _client(url, limits) as client:
        _check_reachable(client, url, limits)


def is_disk_full(error: object) -> bool:
    """Whether an error says that the disk, a quota or a limit of file sizes leaves no room."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL


def mirrored(url: str, mirror: str | None) -> str:
    """Put a mirror's base URL in place of a URL's scheme and host."""
    if mirror is None:
        return url
    parts = urlsplit(url)
    return mirror.rstrip("/") + parts.path + (f"?{parts.query}" if parts.query else "")


def shown(url: str) -> str:
    """A URL as messages may show it: without user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class _Interrupted(Exception):
    """An attempt failed, but another one may not."""

    def __init__(self, message: str, *, retry_after: float | None = None, unconnected: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.unconnected = unconnected


class _State(BaseModel):
    """What the file was when its download began: a strong ETag or a date, and its size if the server said it."""

    validator: str | None = None
    total: int | None = None


class _Part:
    """What has been received so far, and of what."""

    def __init__(self, target: Path) -> None:
        self._path = target.with_name(f"{target.name}.part")
        self._notes = target.with_name(f"{target.name}.part.json")
        try:
            self.state = _State.model_validate_json(self._notes.read_bytes())
        except (OSError, ValidationError):
            self.restart(_State())

    @property
    def size(self) -> int:
        return self._path.stat().st_size if self._path.is_file() else 0

    def restart(self, state: _State) -> None:
        """Start again from the beginning."""
        self._path.unlink(missing_ok=True)  # first: what is there must never be taken for a part of another file
        self._notes.write_text(state.model_dump_json(), encoding="utf-8")
        self.state = state

    @contextlib.contextmanager
    def appending(self) -> Iterator[Callable[[bytes], Any]]:
        with self._path.open("ab", buffering=0) as file:
            yield lambda chunk: _write_all(file, chunk)

    def finish(self, target: Path) -> None:
        self._path.replace(target)
        self._notes.unlink(missing_ok=True)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._path.parent).free


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One request for what is missing."""

    client: httpx.Client
    url: str
    proxy: str | None
    part: _Part
    size: int | None
    limits: Limits
    reporter: Reporter

    def __call__(self) -> None:
        """Receive what is missing.

        Raises:
            _Interrupted: another attempt may succeed.
            DownloadFailed: none will.
        """
        try:
            with self.client.stream("GET", self.url, headers=self._range()) as response:
                if self._accept(response):
                    self._receive(response)
        except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.DecodingError, httpx.InvalidURL) as error:
            raise DownloadFailed(f"{shown(self.url)} can't be downloaded: {reason_of(error)}.") from error
        except httpx.HTTPError as error:
            if isinstance(origin_of(error), ssl.SSLCertVerificationError):  # won't get better
                raise DownloadFailed(f"{shown(self.url)} can't be downloaded: {reason_of(error)}.") from error
            unconnected = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError))
            raise _Interrupted(reason_of(error), unconnected=unconnected) from error

    def _range(self) -> dict[str, str]:
        have = self.part.size
        if not have:
            return {}
        if self.part.state.validator is None:  # nothing would tell whether it is still the same file
            self.part.restart(_State())
            return {}
        return {"Range": f"bytes={have}-", "If-Range": self.part.state.validator}

    def _accept(self, response: httpx.Response) -> bool:
        """Look at status and headers; False if nothing is missing any more."""
        state = _State(validator=validator_of(response), total=None)
        match response.status_code:
            case 200:
                if self.part.size:
                    self.reporter.note("The server sends the file from its beginning; starting over.")
                state.total = number(response.headers.get("Content-Length"))
                self.part.restart(state)
            case 206:
                found = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
                total = number(found["total"]) if found else None
                before = self.part.state
                if (
                    found is None
                    or int(found["first"]) != self.part.size
                    or (before.total is not None and total != before.total)
                    or (state.validator is not None and state.validator != before.validator)
                ):
                    self.part.restart(_State())
                    raise _Interrupted("the file has changed since the download began")
                self.part.state = before.model_copy(update={"total": total})
            case 416:
                found = _UNSATISFIED_RANGE.match(response.headers.get("Content-Range", ""))
                whole = found is not None and int(found["total"]) == self.part.size == self.part.state.total
                if not whole:
                    self.part.restart(_State())
                    raise _Interrupted("the server can't go on from there")
                return False
            case status if status in _TRANSIENT:
                raise _Interrupted(
                    f"the server answers with status {status}",
                    retry_after=seconds_to_wait(response.headers.get("Retry-After")),
                )
            case status:
                raise DownloadFailed(f"{shown(str(response.url))} answers with status {status}{meaning_of(status)}.")
        self._check_total(self.part.state.total)
        return True

    def _check_total(self, total: int | None) -> None:
        if total is None:
            return
        name = shown(self.url)
        if self.size is not None and total != self.size:
            raise DownloadFailed(f"{name} has {total} bytes, but the catalogue says {self.size}.")
        if total > self.limits.max_bytes:
            raise DownloadFailed(f"{name} has {total} bytes; the most allowed is {self.limits.max_bytes}.")
        missing = total - self.part.size
        if missing > (free := self.part.free_bytes()):
            raise DownloadFailed(
                f"There is no room for {name}: {missing} bytes are still to come, and the disk has {free} left."
            )

    def _receive(self, response: httpx.Response) -> None:
        have, total = self.part.size, self.part.state.total
        window, window_end = have, time.monotonic() + self.limits.stall_timeout
        self.reporter.received(have, total)
        with self.part.appending() as append:
            for chunk in response.iter_raw():
                if have + len(chunk) > self.limits.max_bytes:
                    raise DownloadFailed(
                        f"{shown(self.url)} has more than {self.limits.max_bytes} bytes, the most allowed."
                    )
                try:
                    append(chunk)
                except OSError as error:
                    if not is_disk_full(error):
                        raise
                    raise DownloadFailed(
                        f"There is no room for {shown(self.url)}: {error.strerror}. {have} bytes are kept, and another "
                        "try goes on from there."
                    ) from error
                have += len(chunk)
                self.reporter.received(have, total)
                if time.monotonic() > window_end:
                    if have - window < self.limits.stall_bytes:
                        raise _Interrupted(f"only {have - window} bytes came in {self.limits.stall_timeout:g} seconds")
                    window, window_end = have, time.monotonic() + self.limits.stall_timeout
        if total is not None and have != total:
            raise _Interrupted(f"{total} bytes were announced, but {have} came")
        if self.size is not None and have != self.size:
            raise DownloadFailed(f"{shown(self.url)} has {have} bytes, but the catalogue says {self.size}.")


def _until_whole(attempt: _Attempt) -> None:
    limits, failures, connected = attempt.limits, 0, False
    while True:
        before = attempt.part.size
        try:
            return attempt()
        except _Interrupted as interruption:
            connected = connected or not interruption.unconnected
            if not connected:  # patience is for what has worked before
                raise unreachable(str(interruption), url=shown(attempt.url), proxy=attempt.proxy) from interruption
            have = attempt.part.size
            failures = 1 if have - before >= _GAIN else failures + 1
            if failures >= limits.attempts:
                kept = f" {have} bytes are kept, and another try goes on from there." if have else ""
                raise DownloadFailed(
                    f"{shown(attempt.url)} can't be downloaded: {interruption}. Given up after {failures} attempts "
                    f"that got no further.{kept}"
                ) from interruption
            pause = min(limits.pause * 2 ** (failures - 1), limits.longest_pause) * random.uniform(0.8, 1.2)
            if interruption.retry_after is not None:
                pause = min(max(pause, interruption.retry_after), 2 * limits.longest_pause)
            attempt.reporter.note(f"After {have} bytes: {interruption}. Trying again in {pause:.0f} s.")
            time.sleep(pause)


def _check_reachable(client: httpx.Client, url: str, limits: Limits) -> str | None:
    try:
        return check_reachable(client, url, seconds=limits.connect_timeout)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DownloadFailed(f"{shown(url)} can't be downloaded: {reason_of(error)}.") from error


def _client(url: str, limits: Limits) -> httpx.Client:
    secure = urlsplit(url).scheme == "https"

    def check(request: httpx.Request) -> None:
        if request.url.scheme not in ("http", "https") or (secure and request.url.scheme != "https"):
            raise DownloadFailed(f"{shown(url)} leads to {shown(str(request.url))}, which is not encrypted.")

    try:
        return httpx.Client(
            follow_redirects=True,
            max_redirects=10,
            timeout=httpx.Timeout(limits.stall_timeout, connect=_LATER_CONNECT_TIMEOUT),
            # The bytes of the file itself, so that a range of them means what it says.
            headers={"Accept-Encoding": "identity", "User-Agent": f"condconv-serve/{__version__}"},
            event_hooks={"request": [check]},
        )
    except (ValueError, ImportError, OSError) as error:
        raise ConfigurationError(f"The environment's proxy or certificates can't be used: {error}.") from error


def _write_all(file: Any, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]
