"""Fills a model store before servers start: fetches archives of bundles, checks them, and puts them in their places.

    python3 fetch_models.py models.txt /store

Each line of the list is an archive's SHA-256 and its URL; models.txt says more. What is there isn't fetched again.
Several may do this at once: one does it, the others wait. Nothing is changed in a version that is there, and nothing
half-done is ever seen by servers.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from condconv_serve.errors import ConfigurationError, ServiceError
from condconv_serve.files import sha256_of
from condconv_serve.settings import Settings
from condconv_serve.store.archive import extract_tar
from condconv_serve.store.bundle import MANIFEST, open_bundle
from condconv_serve.store.pull.download import Limits, download, shown
from condconv_serve.store.scratch import scratch_directory

KEPT = ".fetched"
"""Directory of the store with what is being downloaded, and a list of each archive's bundles."""
MAX_FILES = 10_000


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive of bundles."""

    sha256: str
    url: str


def parse(text: str) -> list[Archive]:
    """The archives of a list.

    Raises:
        ConfigurationError: names the line that is neither empty, nor a comment, nor a checksum and a URL.
    """
    archives = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = re.fullmatch(r"([0-9a-fA-F]{64})\s+\*?(https?://\S+)\s*", line)
        if not found:
            raise ConfigurationError(f"Line {number} must be a SHA-256, a space and a URL, but is {line!r}.")
        archives.append(Archive(found[1].lower(), found[2]))
    return archives


def fetch(archive: Archive, store: Path, *, limits: Limits) -> None:
    """Bring the bundles of an archive into the store, unless all are there.

    Raises:
        ServiceError: it can't be downloaded, isn't what the list says, or holds something else than whole bundles.
    """
    name = shown(archive.url)
    record = store / KEPT / f"{archive.sha256}.txt"
    if record.exists() and all((store / bundle / MANIFEST).exists() for bundle in record.read_text().split()):
        print(f"{name} is there")
        return
    print(f"Fetching {name} ...", flush=True)
    file = download(archive.url, store / KEPT / archive.sha256, limits=limits)
    if (found := sha256_of(file)) != archive.sha256:
        file.unlink()
        raise ConfigurationError(f"{name} has the SHA-256 {found}, but the list says {archive.sha256}.")
    with scratch_directory(store) as scratch:
        extract_tar(file, scratch / "new", max_bytes=2 * limits.max_bytes, max_members=MAX_FILES)
        bundles = find_bundles(scratch / "new")
        for bundle in bundles:
            open_bundle(scratch / "new" / bundle)
        for bundle in bundles:
            place(scratch / "new" / bundle, store / bundle)
    record.write_text("".join(f"{bundle}\n" for bundle in bundles))
    file.unlink()
    print(f"{name}: {', '.join(map(str, bundles))}")


def find_bundles(directory: Path) -> list[Path]:
    """Where the bundles of an unpacked archive lie, as MODEL/VERSION.

    Raises:
        ConfigurationError: there is none, or a file lies elsewhere.
    """
    bundles = sorted(manifest.parent.relative_to(directory) for manifest in directory.glob(f"*/*/{MANIFEST}"))
    files = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    if astray := [str(file) for file in files if not any(bundle in file.parents for bundle in bundles)]:
        raise ConfigurationError(
            f"An archive must hold MODEL/VERSION/{MANIFEST} and what lies beside it, not {astray[0]}."
        )
    if not bundles:
        raise ConfigurationError(f"An archive must hold MODEL/VERSION/{MANIFEST}, but this one is empty.")
    return bundles


def place(new: Path, target: Path) -> None:
    """Put a bundle where it belongs, in one step.

    Raises:
        ConfigurationError: another bundle of this name and version is there.
    """
    if target.exists():
        if (target / MANIFEST).read_bytes() != (new / MANIFEST).read_bytes():
            version = f"{target.parent.name}/{target.name}"
            raise ConfigurationError(f"The store has another {version}. Versions don't change: give it a new number.")
        return
    target.parent.mkdir(exist_ok=True)
    new.rename(target)


def copy_shipped(shipped: Path, store: Path) -> None:
    """Give an empty store the models of the image."""
    with scratch_directory(store) as scratch:
        for source in sorted(shipped.glob("[!.]*")):
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, scratch / source.name)
            (scratch / source.name).rename(store / source.name)
            print(f"{source.name} of the image")


def main(listed: Path, store: Path) -> None:
    """Bring into the store what the list says."""
    settings = Settings()
    archives = parse(listed.read_text())
    limits = Limits(max_bytes=settings.max_download_bytes, connect_timeout=settings.connect_timeout)
    (store / KEPT).mkdir(exist_ok=True)
    with FileLock(store / KEPT / ".lock"):
        for archive in archives:
            fetch(archive, store, limits=limits)
        if not archives and not any(not path.name.startswith(".") and path.is_dir() for path in store.iterdir()):
            copy_shipped(settings.model_store, store)


if __name__ == "__main__":
    os.umask(0o022)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except (ServiceError, OSError) as error:
        sys.exit(f"error: {error}")
