"""Files of the Hugging Face Hub, through its own library: cache, resuming, proxies, tokens, `HF_ENDPOINT`."""

from __future__ import annotations

import re
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any

from condconv_serve import __version__
from condconv_serve.errors import ConfigurationError, DownloadFailed
from condconv_serve.files import sha256_of
from condconv_serve.store.pull.download import Limits, reach
from condconv_serve.store.pull.reach import Unreachable

_CONFIG = "config.json"
_MAX_CONFIG_BYTES = 64 * 2**20
_SHA256 = re.compile(r"^[0-9a-f]{64}$")


def download_from_hub(
    repository: str,
    file: str,
    *,
    revision: str,
    limits: Limits,
    cache: Path | None = None,
    anew: bool = False,
    quiet: bool = False,
) -> Path:
    """Download a file unless the cache has it.

    Args:
        repository: `owner/name`.
        file: path in the repository.
        revision: branch, tag or commit.
        limits: the most bytes that the file may have, and the time for a connection.
        cache: the library's cache directory; its own default if None.
        anew: whether to download it even if the cache has it.
        quiet: whether to show no progress bar.

    Returns:
        The file in the cache.

    Raises:
        ConfigurationError: the library is not installed.
        Unreachable: there is no way to the Hub, and the cache doesn't have the file.
        DownloadFailed: the Hub doesn't give the file, or not the one whose checksum it names, or it is too large.
    """
    hub = _library()
    name = f"{file} of {repository} ({revision}) on the Hugging Face Hub"
    given: dict[str, Any] = {
        "revision": revision,
        "cache_dir": cache,
        "force_download": anew,
        "library_name": "condconv-serve",
        "library_version": __version__,
    }
    if quiet:
        hub.utils.disable_progress_bars()
    if not hub.constants.HF_HUB_OFFLINE:
        try:
            reach(hub.hf_hub_url(repository, file, revision=revision), limits)
        except Unreachable:
            kept = hub.try_to_load_from_cache(repository, file, cache_dir=cache, revision=revision)
            if anew or not isinstance(kept, str):
                raise
            given["local_files_only"] = True  # else it would try for long
    try:
        offer = hub.hf_hub_download(repository, file, **given, dry_run=True)
        if offer.file_size is not None and offer.file_size > limits.max_bytes:
            raise DownloadFailed(f"{name} has {offer.file_size} bytes; the most allowed is {limits.max_bytes}.")
        path = Path(hub.hf_hub_download(repository, file, **given))
    except DownloadFailed:
        raise
    except Exception as error:  # network errors come from the HTTP library that it uses
        raise DownloadFailed(f"{name} can't be downloaded: {_reason(error)}") from error
    _check_content(path, name)
    return path


def download_config(
    repository: str,
    file: str,
    *,
    revision: str,
    limits: Limits,
    cache: Path | None = None,
    anew: bool = False,
    quiet: bool = False,
) -> Path | None:
    """Download the `config.json` beside a file of weights, into the same place of the cache.

    Returns:
        None if the repository has none, or there is no way to the Hub and the cache has none.

    Raises:
        ConfigurationError, DownloadFailed: as for `download_from_hub`.
    """
    hub = _library()
    name = str(PurePosixPath(file).with_name(_CONFIG))
    small = replace(limits, max_bytes=min(limits.max_bytes, _MAX_CONFIG_BYTES))
    try:
        return download_from_hub(repository, name, revision=revision, limits=small, cache=cache, anew=anew, quiet=quiet)
    except Unreachable:
        return None
    except DownloadFailed as error:
        known = hub.try_to_load_from_cache(repository, name, cache_dir=cache, revision=revision)
        if _is_absent(error) or (hub.constants.HF_HUB_OFFLINE and not isinstance(known, str)):
            return None
        raise


def _is_absent(error: BaseException | None) -> bool:
    """Whether the Hub, or a mirror of it, said that there is no such file: 404 lies somewhere below the error."""
    while error is not None:
        if getattr(getattr(error, "response", None), "status_code", None) == HTTPStatus.NOT_FOUND:
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_content(path: Path, name: str) -> None:
    """The cache names large files by the checksum that the Hub gave; the library doesn't look whether it fits."""
    stored = path.resolve()
    if _SHA256.match(stored.name) and (found := sha256_of(stored)) != stored.name:
        stored.unlink()
        path.unlink(missing_ok=True)
        raise DownloadFailed(f"{name} should have SHA-256 {stored.name}, but has {found}. It was deleted.")


def _library() -> Any:
    try:
        import huggingface_hub.utils
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "Checkpoints on the Hugging Face Hub need its library: pip install 'condconv-serve[hub]'."
        ) from error
    return huggingface_hub


def _reason(error: Exception) -> str:
    """The first line of the library's message, which may go on with advice for its own command line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{(lines or [type(error).__name__])[0].rstrip('.')}."
