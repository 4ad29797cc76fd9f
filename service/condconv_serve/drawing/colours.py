"""Colours by which classes are told apart, also by people who see fewer colours than others."""

from __future__ import annotations

Colour = tuple[int, int, int]

BLACK, WHITE = (0, 0, 0), (255, 255, 255)

# Okabe and Ito's, the ones that differ most first. Their black is left out: lines have a black edge.
CLASS_COLOURS: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (240, 228, 66),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (0, 114, 178),
)


def colour_of(index: int) -> Colour:
    """The colour of a class, by its index: the same in all pictures. More classes than colours share them."""
    return CLASS_COLOURS[index % len(CLASS_COLOURS)]


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever is easier to read on a colour."""
    luminance = _luminance(colour)
    return BLACK if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else WHITE


def _luminance(colour: Colour) -> float:
    """Relative luminance, as in WCAG."""
    shares = [part / 255 for part in colour]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
