"""What was found in a photo, drawn over it."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from PIL import Image

from condconv_serve.domain import DetectedObject
from condconv_serve.drawing import draw_boxes, drawn
from condconv_serve.imaging import decode_photo
from condconv_serve.inputs.image import ImageInput, read_image


def draw_objects(image: ImageInput, objects: Iterable[DetectedObject]) -> Image.Image:
    """Draw objects over the upright photo that they were found in: boxes, with their classes and scores.

    Each class has a colour of its own, the same in every picture. Lines and text grow with the photo.

    Args:
        image: the photo, in any form that calls about images take.
        objects: what was found in it, the highest score first.

    Returns:
        An RGB image of the upright photo's size.

    Raises:
        ServiceError: the photo can't be read.
        TypeError: this is no image.
    """
    return draw_boxes(decode_photo(read_image(image).data, max_pixels=sys.maxsize).image, drawn(objects))
