"""Pictures of what was found: each photo with boxes, as a PNG in a folder."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from condconv_serve.cli.output import err, print_failure, say
from condconv_serve.cli.results import AnsweringModel, Results
from condconv_serve.domain import Detection, ImageResult
from condconv_serve.drawing import draw_boxes, drawn, numbered, picture_names
from condconv_serve.errors import InvalidParameter, OutOfMemory, ServiceError
from condconv_serve.files import write_whole
from condconv_serve.imaging import decode_photo
from condconv_serve.inputs.files import LocalImage
from condconv_serve.settings import Settings

_SOFTWARE = "condconv-serve"
_FAST = 1
"""Level of compression: more takes longer than everything else, and saves little with photos."""


@dataclass(frozen=True, slots=True)
class _KeptImage(LocalImage):
    """An image whose bytes stay after they were read: a file may change, and a pipe is empty then."""

    kept: list[bytes] = field(default_factory=list)

    def read_bytes(self, max_bytes: int) -> bytes:
        data = LocalImage.read_bytes(self, max_bytes)  # `super()` finds nothing in classes with slots
        self.kept[:] = [data]
        return data

    def take(self) -> bytes | None:
        """Its bytes, which don't stay any longer; None if they could not be read."""
        return self.kept.pop() if self.kept else None


class WithPictures:
    """Prints other results, and draws each.

    Attributes:
        failed: how many pictures could not be drawn or written.
    """

    def __init__(self, results: Results[Detection], folder: Path) -> None:
        """Print them as `results` does, and write pictures to a folder, which is made if it isn't there.

        Raises:
            InvalidParameter: nothing can be written there.
        """
        _check_folder(folder)
        self.failed = self._written = 0
        self._results = results
        self._folder = folder

    def prepare(self, images: Sequence[LocalImage], settings: Settings) -> Sequence[LocalImage]:
        """Keep images' bytes until their results come."""
        self._max_pixels = settings.max_pixels
        kept = [_KeptImage(image.name, image.file, image.data) for image in images]
        names = picture_names([image.name for image in kept])
        self._waiting = deque(zip(kept, names, strict=True))
        self._taken = {name.casefold() for name in names}
        return kept

    def started(self, model: AnsweringModel) -> None:
        """Remember the model."""
        self._model = model
        self._results.started(model)

    def result(self, result: ImageResult[Detection]) -> None:
        """Print a result, and draw it if there is one."""
        self._results.result(result)
        image, name = self._waiting.popleft()
        data = image.take()
        if result.prediction is None or data is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._place_for(name), self._picture(data, result.prediction))
            self._written += 1
        except MemoryError:
            self._fail(name, OutOfMemory("There is too little memory to draw this picture.", retry_after=5.0))
        except ServiceError as error:
            self._fail(name, error)
        except OSError as error:
            self._fail(name, f"The picture can't be written: {error.strerror or error}.")

    def ended(self, *, interrupted: bool) -> None:
        """Say how many there are."""
        self._results.ended(interrupted=interrupted)
        if self._written:
            say(f"wrote {self._written} picture{'s' * (self._written > 1)} to {self._folder}", console=err)

    def _place_for(self, name: str) -> Path:
        """The file for a picture: one of our own of an earlier run is replaced; what is not ours stays."""
        place, number = self._folder / name, 1
        while os.path.lexists(place) and not _is_ours(place):
            while (other := numbered(name, number := number + 1)).casefold() in self._taken:
                pass
            place = self._folder / other
        self._taken.add(place.name.casefold())
        return place

    def _picture(self, data: bytes, found: Detection) -> bytes:
        picture = draw_boxes(decode_photo(data, max_pixels=self._max_pixels).image, drawn(found.objects))
        about = PngInfo()
        made_by = self._model.makes(interrupted=False)
        about.add_text("Software", made_by.software)
        about.add_text("Description", "".join(c if c.isprintable() else " " for c in made_by.line()))
        picture.save(buffer := io.BytesIO(), "PNG", pnginfo=about, compress_level=_FAST)
        return buffer.getvalue()

    def _fail(self, name: str, why: object) -> None:
        self.failed += 1
        print_failure(self._folder / name, why)


def _check_folder(folder: Path) -> None:
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    if not there.is_dir():
        raise InvalidParameter(f"{folder}: pictures are written to a folder, and {there} is a file.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InvalidParameter(f"{folder}: nothing can be written to {there}.")


def _is_ours(file: Path) -> bool:
    """Whether this is a picture that was drawn here, and nobody's photo."""
    if file.is_symlink() or not file.is_file():
        return False
    try:
        with Image.open(file, formats=["PNG"]) as picture:
            return str(picture.info.get("Software", "")).startswith(_SOFTWARE)
    except Exception:  # Pillow's readers may raise anything
        return False
