"""From a published checkpoint to a bundle: the use case of `condconv models pull`."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import platformdirs
from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from condconv_serve.domain import Label
from condconv_serve.domain.manifest import Accuracy, ModelName, VersionName
from condconv_serve.errors import BundleError, DownloadFailed, ImportFailed, InvalidParameter
from condconv_serve.files import sha256_of
from condconv_serve.store.archive import extract_tar
from condconv_serve.store.bundle import read_manifest
from condconv_serve.store.pull.checksums import Checksums
from condconv_serve.store.pull.download import Limits, Reporter, Silence, download, is_disk_full, mirrored, shown
from condconv_serve.store.pull.hub import download_config, download_from_hub
from condconv_serve.store.pull.published import Checkpoint, HubSource, UrlSource
from condconv_serve.validation import first_message

if TYPE_CHECKING:
    from condconv_serve.nn import Architecture

MAX_MEMBERS = 1000
"""The most files that an archive may hold. Published ones hold five."""

_accuracy = TypeAdapter(tuple[Accuracy, ...])
_labels = TypeAdapter(list[Label])


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """Which checkpoint to pull, what to call it, and how to get it."""

    checkpoint: Checkpoint
    name: str
    version: str
    cache: Path | None = None
    """Directory for downloads; the user's cache directory, and the Hub library's own, if None."""
    mirror: str | None = None
    limits: Limits = field(default_factory=Limits)
    accept_changed: bool = False
    """Download again, and accept the file even if it differs from the one of the first pull."""
    quiet: bool = False
    """Show none of the Hub library's progress bars."""
    file: Path | None = None
    """The checkpoint's file, if somebody has downloaded it already."""
    shipped: bool = False
    """It is in the catalogue that comes with this program, so its architecture exists."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """The bundle's directory, and whether it is new."""

    path: Path
    new: bool


def pull(
    request: PullRequest,
    *,
    store: Path,
    reporter: Reporter | None = None,
    prepare: Callable[[], None] = lambda: None,
) -> Pulled:
    """Download a checkpoint unless the cache has it, check it, and make a bundle of it.

    The store remembers the SHA-256 of the first pull, and later pulls must match it; one from the catalogue must match,
    too. If the same bundle is there already, nothing is done. Several processes may pull at once.

    Args:
        request: what to pull.
        store: directory of the model store.
        reporter: is told how the download gets on.
        prepare: called before anything imports TensorFlow. That takes seconds, so it comes as late as it can.

    Raises:
        InvalidParameter: impossible name or version.
        ConfigurationError: unknown architecture, or the Hub's library is missing.
        Unreachable: there is no way to the file's server.
        DownloadFailed: the file can't be downloaded, or isn't the right one.
        ImportFailed: the file doesn't fit the architecture, or its archive isn't safe.
        BundleError: another bundle has that name and version.
        OSError: a directory can't be written.
    """
    _check_place(request)
    reporter = reporter or Silence()
    checkpoint = request.checkpoint
    if not request.shipped:  # refuse what can't be before anything is downloaded
        _architecture(checkpoint, prepare)
    checksums = Checksums(store)
    cache = request.cache or platformdirs.user_cache_path("condconv-serve")
    work = cache / "downloads" / hashlib.sha256(checkpoint.source.key.encode()).hexdigest()[:16]
    work.mkdir(parents=True, exist_ok=True)
    with _alone(work, reporter):
        if (path := _existing(request, store, checksums)) is not None:
            return Pulled(path, new=False)
        file, sha256 = _fetch(request, work, checksums, reporter)
        architecture = _architecture(checkpoint, prepare)
        path = _bundle(request, architecture, file, sha256, store=store, scratch=work / "unpacked")
        checksums.remember(checkpoint.source.key, sha256=sha256, size=file.stat().st_size)
    return Pulled(path, new=True)


def _architecture(checkpoint: Checkpoint, prepare: Callable[[], None]) -> Architecture:
    prepare()
    from condconv_serve.nn import get_architecture

    return get_architecture(checkpoint.architecture.name, **checkpoint.architecture.overrides)


def _check_place(request: PullRequest) -> None:
    for value, kind, what in ((request.name, ModelName, "name"), (request.version, VersionName, "version")):
        try:
            TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            raise InvalidParameter(f"{value!r} can't be a model's {what}: {first_message(error)}.") from error


def _existing(request: PullRequest, store: Path, checksums: Checksums) -> Path | None:
    """The bundle if it is there already and made of the very file; None if its place is free.

    Raises:
        BundleError: another bundle is there.
    """
    path = store / request.name / request.version
    if not path.exists():
        return None
    known = checksums.known(request.checkpoint.source.key)
    wanted = request.checkpoint.sha256 or (known.sha256 if known else None)
    if not request.accept_changed and wanted and read_manifest(path).provenance.source_sha256 == wanted:
        return path
    raise BundleError(f"{request.name}/{request.version} exists already; choose another version.")


def _fetch(request: PullRequest, work: Path, checksums: Checksums, reporter: Reporter) -> tuple[Path, str]:
    """The checkpoint's file and its SHA-256, which is the right one."""
    source = request.checkpoint.source
    if request.file is not None:
        sha256 = sha256_of(request.file)
        if complaint := _complaint(request, sha256, checksums):
            raise DownloadFailed(f"{request.file}: {complaint}")
        return request.file, sha256
    if isinstance(source, HubSource):
        wanted: dict[str, Any] = {
            "revision": source.revision,
            "limits": request.limits,
            "cache": request.cache / "hub" if request.cache else None,
            "anew": request.accept_changed,
            "quiet": request.quiet,
        }
        file = download_from_hub(source.repository, source.file, **wanted)
        sha256 = sha256_of(file)
        if complaint := _complaint(request, sha256, checksums):
            raise DownloadFailed(complaint)
        download_config(source.repository, source.file, **wanted)
        return file, sha256

    file = work / source.url.rpartition("/")[2]
    if request.accept_changed:
        file.unlink(missing_ok=True)
    if file.is_file():
        sha256 = sha256_of(file)
        complaint = _complaint(request, sha256, checksums)
        if complaint is None:
            return file, sha256
        reporter.note(f"The cached file is not the right one, so it is downloaded again: {complaint}")
        file.unlink()
    url = mirrored(source.url, request.mirror)
    download(url, file, size=request.checkpoint.size, limits=request.limits, reporter=reporter)
    sha256 = sha256_of(file)
    if complaint := _complaint(request, sha256, checksums):
        file.unlink()
        raise DownloadFailed(f"{complaint} It was deleted.")
    return file, sha256


def _complaint(request: PullRequest, sha256: str, checksums: Checksums) -> str | None:
    """What is wrong with a file of that SHA-256, if anything."""
    source, wanted = request.checkpoint.source, request.checkpoint.sha256
    name = shown(source.url) if isinstance(source, UrlSource) else source.key
    if wanted is not None and sha256 != wanted:
        return f"{name} has SHA-256 {sha256}, but the catalogue says {wanted}."
    known = checksums.known(source.key)
    if known is not None and sha256 != known.sha256 and not request.accept_changed:
        return (
            f"{name} has SHA-256 {sha256}, but at its first pull, on {known.first_pulled:%Y-%m-%d}, it had "
            f"{known.sha256}. If you know why it changed, --accept-changed takes it."
        )
    return None


def _bundle(
    request: PullRequest, architecture: Architecture, file: Path, sha256: str, *, store: Path, scratch: Path
) -> Path:
    from condconv_serve.store.importers.bundling import ImportRequest, import_bundle

    checkpoint = request.checkpoint
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed pull has left
    scratch.mkdir()
    try:
        try:
            weights = _readable(file, scratch / "archive", 2 * request.limits.max_bytes)
        except ImportFailed as error:
            own = request.file is None and isinstance(checkpoint.source, UrlSource)
            if own and not is_disk_full(error.__cause__):
                file.unlink()  # else the next pull would take it from the cache
            raise
        labels, accuracy, card = scratch / "labels.json", scratch / "accuracy.json", scratch / "card.md"
        if checkpoint.labels is not None:
            labels.write_bytes(_labels.dump_json(_label_list(checkpoint.labels)))
        accuracy.write_bytes(_accuracy.dump_json(_as_published(checkpoint)))
        card.write_text(_card(request, sha256), encoding="utf-8")
        return import_bundle(
            ImportRequest(
                source=weights,
                archive=file,
                source_sha256=sha256,
                architecture=checkpoint.architecture.name,
                overrides=checkpoint.architecture.overrides,
                name=request.name,
                version=request.version,
                labels=labels if checkpoint.labels is not None else None,
                transform=checkpoint.transform,
                mean=checkpoint.mean,
                std=checkpoint.std,
                model_card=card,
                licence=checkpoint.licence,
                accuracy=accuracy,
                method=checkpoint.method or f"published checkpoint of {architecture.name}, converted",
                url=checkpoint.source.page,
                given_by="the catalogue",
            ),
            store=store,
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _readable(file: Path, directory: Path, max_bytes: int) -> Path:
    """The weights in a downloaded file: itself, or the checkpoint in the archive that it is."""
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "np"):  # looks at the header, and whether the file is as long as that says
                return file
        except (SafetensorError, OSError) as error:
            raise ImportFailed(f"{file.name} can't be read as safetensors: {error}.") from error
    from condconv_serve.store.importers.sources import sole_checkpoint

    extract_tar(file, directory, max_bytes=max_bytes, max_members=MAX_MEMBERS)
    return sole_checkpoint(directory, file.name)


def _label_list(labels: Literal["imagenet-1k"] | tuple[Label, ...]) -> list[Label]:
    from condconv_serve.store.importers.labels import imagenet_labels

    return imagenet_labels() if labels == "imagenet-1k" else list(labels)


def _as_published(checkpoint: Checkpoint) -> tuple[Accuracy, ...]:
    return tuple(
        measured.model_copy(update={"note": f"{measured.note or 'as published'}; not measured here"})
        for measured in checkpoint.accuracy
    )


def _card(request: PullRequest, sha256: str) -> str:
    checkpoint = request.checkpoint
    lines = [
        f"# {checkpoint.title}",
        "",
        *([checkpoint.method, ""] if checkpoint.method else []),
        f"- Source: {checkpoint.source.page}",
        f"- SHA-256 of the file: {sha256}",
        f"- Licence: {checkpoint.licence}",
        f"- Architecture: {checkpoint.architecture.name}",
    ]
    for measured in _as_published(checkpoint):
        top5 = f", top-5 {measured.top5:.1%}" if measured.top5 is not None else ""
        lines.append(f"- {measured.dataset}: top-1 {measured.top1:.1%}{top5} ({measured.note})")
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _alone(work: Path, reporter: Reporter) -> Iterator[None]:
    """Keep other processes from pulling the same checkpoint, or wait for the one that does."""
    lock = FileLock(work.with_name(f"{work.name}.lock"))
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        reporter.note("Another process is pulling this checkpoint; waiting for it.")
        held = lock.acquire()
    with held:
        yield
