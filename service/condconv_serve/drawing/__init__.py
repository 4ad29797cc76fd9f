"""Draws boxes with captions over photos. Pillow and domain values only."""

from condconv_serve.drawing.boxes import DrawnBox, draw_boxes, drawn
from condconv_serve.drawing.names import numbered, picture_names

__all__ = ["DrawnBox", "draw_boxes", "drawn", "numbered", "picture_names"]
