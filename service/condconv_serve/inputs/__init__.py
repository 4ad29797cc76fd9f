"""What callers give as images: on the command line, to a loaded model, and to a client of a server."""

from condconv_serve.inputs.given import GivenImage, GivenImages, ImagesInput, images_of
from condconv_serve.inputs.image import ImageInput, is_one_image, picture_of, read_image

__all__ = [
    "GivenImage",
    "GivenImages",
    "ImageInput",
    "ImagesInput",
    "images_of",
    "is_one_image",
    "picture_of",
    "read_image",
]
