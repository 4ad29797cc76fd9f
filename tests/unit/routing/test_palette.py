"""Pictures have the page's colours."""

import re
from pathlib import Path

import pytest
from matplotlib.colors import to_hex

from condconv_serve.routing.palette import DARK, LEVELS, LIGHT, ROLES, dark_counterparts, theme_of

WEB = Path(__file__).parents[3] / "service/condconv_serve/web"


@pytest.mark.parametrize("role", ROLES)
def test_colours_are_those_of_the_style_sheet(role):
    found = re.search(rf"--{role.replace('_', '-')}: light-dark\((#\w+), (#\w+)\);", (WEB / "style.css").read_text())
    assert found, f"style.css has no --{role}"
    assert found.groups() == (getattr(LIGHT, role), getattr(DARK, role))


@pytest.mark.parametrize(("name", "theme"), [("light", LIGHT), ("dark", DARK)])
def test_the_scale_is_that_of_the_page(name, theme):
    found = re.search(rf"{name}: {{\s*sequential: \[(.*?)\]", (WEB / "colours.js").read_text(), re.DOTALL)
    assert tuple(re.findall(r"#\w+", found[1])) == theme.sequential
    ends = [to_hex(theme.scale(value)) for value in (0.0, 1.0)]
    assert ends == [theme.sequential[0], theme.sequential[-1]]


def contrast(one, other):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("place", range(LEVELS))
def test_numbers_on_cells_are_readable_in_both_themes(place):
    value, both, dark = place / (LEVELS - 1), theme_of("auto", adapts=True), dark_counterparts()
    for theme in (LIGHT, DARK, both):
        assert contrast(theme.on(value), to_hex(theme.scale(value))) >= 4.5
    assert contrast(dark[both.on(value)], dark[to_hex(both.scale(value))]) >= 4.5


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_text_and_lines_are_readable(theme):
    for colour in (theme.ink, theme.soft):
        assert contrast(colour, theme.surface) >= 4.5
    assert len(set(theme.lines)) == len(theme.lines)
