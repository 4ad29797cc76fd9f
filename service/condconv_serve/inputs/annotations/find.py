"""Finds a data set's annotations, in either format."""

from __future__ import annotations

from pathlib import Path

from condconv_serve.domain import readable
from condconv_serve.errors import DataSetError
from condconv_serve.files import read_limited
from condconv_serve.inputs.annotations.annotated import Annotations
from condconv_serve.inputs.annotations.coco import read_coco
from condconv_serve.inputs.annotations.voc import ANNOTATIONS, read_voc

_MAX_LIST_BYTES = 64 * 2**20
_EITHER = "COCO's JSON file, a folder of Pascal VOC's XML files, or a list of their names (ImageSets/Main/train.txt)"


def load_annotations(directory: Path, annotations: Path | None = None) -> Annotations:
    """Read a data set's annotations.

    Args:
        directory: of the data set.
        annotations: COCO's `.json`; or a folder with Pascal VOC's XML files; or a `.txt` with their names, one a line.
            If None: the only JSON file in the directory or in its folder `annotations`, or the XML files in its folder
            `Annotations`, or in itself.

    Raises:
        DataSetError: there are none, or several; or they are damaged, or say nothing of any photo that is there.
    """
    if not directory.is_dir():
        raise DataSetError(f"{directory} is no directory that can be read.")
    source = annotations or _find(directory)
    if source.is_dir():
        found = read_voc(_xml(source), directory)
    elif source.suffix.lower() == ".json":
        found = read_coco(source, directory)
    elif source.suffix.lower() == ".txt":
        found = read_voc(_listed(source, directory), directory)
    elif not source.exists():
        raise DataSetError(f"There are no annotations {source}.")
    else:
        raise DataSetError(f"{source}: annotations are {_EITHER}.")
    if not found.images:
        reasons = "".join(f" Left out: {one}." for one in found.left_out)
        raise DataSetError(f"{source} describes no image that is there.{reasons}")
    if not found.names:
        raise DataSetError(f"{source} holds no box.")
    return found


def _find(directory: Path) -> Path:
    documents = sorted([*directory.glob("*.json"), *directory.glob("annotations/*.json")])
    if len(documents) > 1:
        names = ", ".join(readable(document.relative_to(directory)) for document in documents[:8])
        raise DataSetError(f"{directory} holds several files that may be annotations: {names}. Say which.")
    if documents:
        return documents[0]
    for folder in (directory / ANNOTATIONS, directory):
        if folder.is_dir() and any(folder.glob("*.xml")):
            return folder
    raise DataSetError(f"{directory} holds no annotations: they are {_EITHER}.")


def _xml(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.xml"))


def _listed(file: Path, directory: Path) -> list[Path]:
    """The XML files of a list of names; what follows a name on its line doesn't count."""
    try:
        lines = read_limited(file, _MAX_LIST_BYTES).decode("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        raise DataSetError(f"{file} can't be read: {error.strerror}.") from error
    folder = directory / ANNOTATIONS if (directory / ANNOTATIONS).is_dir() else directory
    names = [line.split()[0] for line in lines if line.strip()]
    if odd := [name for name in names if "/" in name or "\0" in name]:
        raise DataSetError(f"{file}: {odd[0]!r} is no name of an XML file in {folder}.")
    return [folder / f"{name}.xml" for name in dict.fromkeys(names)]
