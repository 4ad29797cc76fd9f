"""How large a picture may be, as its header announces it."""

from __future__ import annotations

from condconv_serve.errors import ImageTooLarge


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Refuse a picture of this width and height if it has too many pixels.

    Raises:
        ImageTooLarge: more than `max_pixels`.
    """
    width, height = size
    if width * height > max_pixels:
        message = f"The image has {width} x {height} pixels, {width * height} in all; {max_pixels} are allowed."
        raise ImageTooLarge(message)
