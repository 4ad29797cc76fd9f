"""The colours of pictures: those of the page, for light and dark. A test compares them with `web/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from matplotlib.colors import LinearSegmentedColormap, ListedColormap, to_hex, to_rgb

ThemeName = Literal["auto", "light", "dark"]
LEVELS = 64
"""Colours of a scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Colours as `#rrggbb`, each named as in `web/style.css`; the scale is that of `web/colours.js`."""

    paper: str
    surface: str
    ink: str
    soft: str
    line: str
    accent: str
    bar: str
    bar_soft: str
    good: str
    bad: str
    decode: str
    queue: str
    inference: str
    sequential: tuple[str, ...]
    black: str = "#000001"
    """On light cells. Not quite black, since matplotlib leaves out black, and SVG needs something to replace."""
    white: str = "#fffffe"

    @property
    def lines(self) -> tuple[str, ...]:
        """Colours of lines that have to be told apart."""
        return (self.bar, self.decode, self.inference, self.good, self.queue, self.soft, self.bad)

    @property
    def levels(self) -> list[str]:
        """The colours of the scale for weights from 0 to 1."""
        blended = LinearSegmentedColormap.from_list("weights", self.sequential)
        return [to_hex(blended(place / (LEVELS - 1))) for place in range(LEVELS)]

    @property
    def scale(self) -> ListedColormap:
        """The scale for weights from 0 to 1."""
        return ListedColormap(self.levels)

    def on(self, value: float) -> str:
        """The colour of text on a cell of a value from 0 to 1, with a contrast of at least 4.5."""
        return self.black if _luminance(to_hex(self.scale(value))) > 0.179 else self.white


LIGHT = Theme(
    paper="#f6f3ec",
    surface="#fffdf8",
    ink="#20242c",
    soft="#5c6068",
    line="#e3ddcf",
    accent="#7a2a4d",
    bar="#d4704a",
    bar_soft="#c9b9a6",
    good="#2c6e49",
    bad="#a32d1f",
    decode="#5b8a8f",
    queue="#c8b78f",
    inference="#7a2a4d",
    sequential=("#f4efe4", "#f8d692", "#e8934a", "#b23a48", "#4a1942"),
)
DARK = Theme(
    paper="#13161b",
    surface="#1a1e25",
    ink="#ece8df",
    soft="#a5abb6",
    line="#2f3540",
    accent="#f0a566",
    bar="#ee8b45",
    bar_soft="#5d5f68",
    good="#7fd3a2",
    bad="#ff9c87",
    decode="#79b8bd",
    queue="#8f8462",
    inference="#c96a8f",
    sequential=("#23272f", "#4a2352", "#a8384f", "#ee8b45", "#ffe6ad"),
)
ROLES = (
    "paper", "surface", "ink", "soft", "line", "accent", "bar", "bar_soft", "good", "bad", "decode", "queue",
    "inference",
)  # fmt: skip
"""Fields of a theme that are colours of the page."""


class BothThemes(Theme):
    """The light colours, for a picture that the viewer's program may darken: text on cells is right in both."""

    __slots__ = ()

    def on(self, value: float) -> str:
        """A colour that stands for one in light and one in dark surroundings."""
        return _ON_CELLS[LIGHT.on(value), DARK.on(value)]


_ON_CELLS = {
    (LIGHT.black, DARK.black): "#000001",
    (LIGHT.black, DARK.white): "#000002",
    (LIGHT.white, DARK.black): "#fffffd",
    (LIGHT.white, DARK.white): "#fffffe",
}


# In light surroundings inference has the accent's colour, in dark ones another, so here it is one step away.
_BOTH = BothThemes(**{role: getattr(LIGHT, role) for role in LIGHT.__slots__} | {"inference": "#7a2a4e"})


def theme_of(name: ThemeName, *, adapts: bool) -> Theme:
    """The theme of a picture. `auto` is light, and follows the viewer's program where the kind of file `adapts`."""
    if name == "dark":
        return DARK
    return _BOTH if adapts and name == "auto" else LIGHT


def dark_counterparts() -> dict[str, str]:
    """For each colour of a picture of both themes, what it is in dark surroundings."""
    pairs = {getattr(_BOTH, role): getattr(DARK, role) for role in ROLES}
    pairs |= dict(zip(LIGHT.levels, DARK.levels, strict=True))
    return pairs | {both: dark for (_, dark), both in _ON_CELLS.items()}


def _luminance(colour: str) -> float:
    """Relative luminance, as in WCAG."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
