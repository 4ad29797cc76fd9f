"""Routing statistics to pass between processes. States of replicas add up exactly."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import RoutingLayout
from condconv_serve.errors import InvalidParameter
from condconv_serve.routing.statistics import WINDOWS, RoutingStatistics, Window
from condconv_serve.routing.tally import Tally
from condconv_serve.routing.views import blocks_view


@dataclass(frozen=True, slots=True, eq=False)
class RoutingState:
    """Every window of one version's statistics, of one replica or of several together."""

    model: str
    version: str
    layout: RoutingLayout
    windows: dict[Window, Tally]

    @classmethod
    def of(cls, statistics: RoutingStatistics, *, model: str, version: str) -> RoutingState:
        """The state of running statistics, now."""
        return cls(model, version, statistics.layout, {window: statistics.read(window) for window in WINDOWS})

    def merge(self, other: RoutingState) -> None:
        """Add another replica's state: the same as if one replica had answered all images.

        Raises:
            InvalidParameter: it is of another model, version, or blocks.
        """
        mine, its = ((state.model, state.version, state.layout) for state in (self, other))
        if mine != its:
            raise InvalidParameter(
                f"States of {other.model}/{other.version} and of {self.model}/{self.version} don't add up."
                if mine[:2] != its[:2]
                else f"Both states are of {self.model}/{self.version}, but their blocks or experts differ."
            )
        for window, tally in self.windows.items():
            tally.merge(other.windows[window])

    def pack(self) -> bytes:
        """As an NPZ file without pickles: `model`, `blocks`, `experts`, and a window's arrays as `<window>/<name>`."""
        arrays: dict[str, NDArray[Any]] = {
            "model": np.array([self.model, self.version]),
            "blocks": np.array(self.layout.blocks, dtype=np.str_),
            "experts": np.array(self.layout.experts, np.int64),
        }
        for window, tally in self.windows.items():
            arrays |= {f"{window}/{name}": value for name, value in tally.to_arrays().items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def unpack(cls, content: bytes) -> RoutingState:
        """Read what `pack` wrote.

        Raises:
            InvalidParameter: it is something else.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            model, version = arrays["model"].tolist()
            layout = RoutingLayout(tuple(arrays["blocks"].tolist()), tuple(arrays["experts"].tolist()))
            windows = {
                window: Tally.from_arrays(
                    {n.partition("/")[2]: v for n, v in arrays.items() if n.startswith(f"{window}/")}, layout
                )
                for window in WINDOWS
            }
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise InvalidParameter(f"This is no routing state ({error}).") from error
        return cls(model, version, layout, windows)

    def to_json(self) -> dict[str, Any]:
        """Figures of all windows, for programs."""
        return {
            "model": {"name": self.model, "version": self.version},
            "windows": {
                window: {
                    "images": tally.count,
                    "blocks": blocks_view(tally),
                }
                for window, tally in self.windows.items()
            },
        }
