"""Writes `protos/<set>.binpb` from the files below `protos/<set>/`; `--check` only says which would change.

It needs grpcio-tools, so `make protos` runs it where the tests are installed. Servers read the result.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

FOLDER = Path(__file__).parent / "protos"


def compiled(folder: Path) -> bytes:
    """The files of a set and all that they import, as a serialised `FileDescriptorSet`.

    Raises:
        ValueError: a file can't be compiled; the compiler has said why.
    """
    from grpc_tools import protoc

    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "set.binpb"
        paths = [f"-I{folder}", f"-I{files('grpc_tools') / '_proto'}"]
        options = ["--include_imports", f"--descriptor_set_out={output}"]
        if protoc.main(["protoc", *paths, *options, *names]):
            raise ValueError(f"{folder.name} can't be compiled.")
        return output.read_bytes()


def main() -> int:
    """Write the sets, or with `--check` name those that are out of date."""
    changed = []
    for folder in sorted(path for path in FOLDER.iterdir() if path.is_dir()):
        target, content = folder.with_suffix(".binpb"), compiled(folder)
        if target.exists() and target.read_bytes() == content:
            continue
        changed.append(target.name)
        if "--check" not in sys.argv:
            target.write_bytes(content)
            print(f"{target.name}: {len(content)} bytes")
    if changed and "--check" in sys.argv:
        print(f"{', '.join(changed)}: not what the .proto files say. Run: make protos", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
