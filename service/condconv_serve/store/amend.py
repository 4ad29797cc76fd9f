"""Changes to a bundle that is already in its place."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from condconv_serve.domain import RoutingProfile
from condconv_serve.domain.manifest import FileSpec
from condconv_serve.files import write_whole
from condconv_serve.store.bundle import MANIFEST, Bundle, open_bundle
from condconv_serve.store.new_bundle import dump_manifest
from condconv_serve.store.profile import profile_name, serialise_profile


def add_profile(path: Path, profile: RoutingProfile) -> Bundle:
    """Give a bundle a reference profile, in place of the one it has.

    The new manifest replaces the old one in one step, and the two name different files. A reader sees the bundle as
    it was or as it is.

    Returns:
        The bundle as it is now.

    Raises:
        BundleError: it is no valid bundle.
        OSError: the disk is full or not writable; the bundle is as it was.
    """
    bundle = open_bundle(path)
    old, content = bundle.manifest.routing_profile, serialise_profile(profile)
    name = profile_name(content)
    described = FileSpec(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    files = {n: spec for n, spec in bundle.manifest.files.items() if n != old}
    manifest = bundle.manifest.model_copy(update={"files": {**files, name: described}})
    write_whole(path / name, content)
    try:
        write_whole(path / MANIFEST, dump_manifest(manifest))
    except BaseException:
        if name != old:
            (path / name).unlink(missing_ok=True)
        raise
    if old is not None and old != name:
        with contextlib.suppress(OSError):  # it is in nobody's way
            (path / old).unlink()
    return open_bundle(path)
