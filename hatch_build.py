"""Puts the native kernels' library and the model store into wheels.

The library comes beside its sources where the project is installed as editable.

A wheel is for this machine, and where nothing can be compiled it is one without the library: TensorFlow's own kernels
do its work then. If WHEEL_ARCH names an architecture, the wheel is for every such machine, and it is an error if it
can't be compiled. HATCH_BUILD_NO_HOOKS=true leaves all of this out.
"""

from __future__ import annotations

import os
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = Path("condconv_serve")
KERNELS = PACKAGE / "runtime" / "kernels"
SHIPPED = ("model_store/default.json", "model_store/efficientnet-lite0-condconv-4e/1")
"""What comes along of the model store. A developer's may hold other models."""
ROOT = Path(__file__).parent


class NativeKernels(BuildHookInterface):
    """The hook; hatchling finds it as the only one in this file."""

    def dependencies(self) -> list[str]:
        """Zig's compiler, only where it is needed: it is 100 MB."""
        arch = os.environ.get("WHEEL_ARCH", "")
        kernels = _load()
        try:
            if not arch and (kernels.is_current() or kernels.find_compiler()):
                return []
        except kernels.NoCompiler:
            if not kernels.supported():
                return []
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        return list(project["dependency-groups"]["compiler"])

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the models, compile, and name the wheel for the machines that it is for."""
        if version != "editable":
            there = [name for name in SHIPPED if (ROOT / name).exists()]  # images have the store elsewhere
            build_data["force_include"] |= {str(ROOT / name): str(PACKAGE / name) for name in there}
        kernels = _load()
        arch = os.environ.get("WHEEL_ARCH", "")
        try:
            variant = kernels.Variant(arch=arch, portable=bool(arch))
            library = kernels.build(variant)
        except (kernels.NoCompiler, kernels.CompileError, OSError) as error:
            if arch:
                raise
            self.app.display_warning(f"The native kernels were not built, so TensorFlow's do their work: {error}")
            return
        if version != "editable":
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{variant.platform_tag}"
            build_data["force_include"][str(library)] = str(KERNELS / library.name)


def _load() -> Any:
    """The module that compiles; the package can't be imported yet."""
    name = "condconv_kernels_build"
    if name not in sys.modules:
        spec = spec_from_file_location(name, ROOT / "service" / KERNELS / "build.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
