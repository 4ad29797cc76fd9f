"""The model store that comes with the package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def embedded_store() -> Path | None:
    """The directory of the store that comes with the package; None if none does.

    Wheels hold it inside of the package, a checkout beside it.
    """
    project = _PACKAGE.parents[1]
    places = [_PACKAGE / "model_store"]
    if (project / "pyproject.toml").is_file():
        places.append(project / "model_store")
    return next((place for place in places if place.is_dir()), None)
