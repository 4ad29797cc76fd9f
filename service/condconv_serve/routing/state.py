"""Routing statistics to pass between processes. States of replicas add up exactly."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import RoutingLayout
from condconv_serve.errors import InvalidParameter
from condconv_serve.routing.statistics import WINDOWS, RoutingStatistics, Window
from condconv_serve.routing.tally import Tally


@dataclass(frozen=True, slots=True, eq=False)
class RoutingState:
    """Windows of one version's statistics, of one replica or of several together. It can be pickled.

    Attributes:
        model: its name.
        version: of the model.
        layout: its blocks and experts.
        windows: the images of each window.
        seconds: how far each window reaches back; of several replicas, the longest.
    """

    model: str
    version: str
    layout: RoutingLayout
    windows: dict[Window, Tally]
    seconds: dict[Window, float]

    @classmethod
    def of(
        cls, statistics: RoutingStatistics, *, model: str, version: str, windows: Sequence[Window] = WINDOWS
    ) -> RoutingState:
        """The state of running statistics, now."""
        return cls(
            model,
            version,
            statistics.layout,
            {window: statistics.read(window) for window in windows},
            {window: statistics.seconds(window) for window in windows},
        )

    @classmethod
    def empty(
        cls, layout: RoutingLayout, *, model: str, version: str, windows: Sequence[Window] = WINDOWS
    ) -> RoutingState:
        """The state of a version that has answered nothing."""
        tallies = {window: Tally(layout) for window in windows}
        return cls(model, version, layout, tallies, dict.fromkeys(windows, 0.0))

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
            self.seconds[window] = max(self.seconds[window], other.seconds[window])

    @classmethod
    def merged(cls, states: Sequence[RoutingState]) -> RoutingState:
        """The sum of the states of one or more replicas, which stay as they are; errors are those of `merge`.

        Each replica's windows are cut at its own clock's minutes, so the sum of `1m` and `15m` covers what each replica
        answered in the time that its window covers.
        """
        first = states[0]
        total = cls.empty(first.layout, model=first.model, version=first.version, windows=tuple(first.windows))
        for state in states:
            total.merge(state)
        return total

    def pack(self) -> bytes:
        """As an NPZ file without pickles: `model`, `blocks`, `experts`, and a window's arrays as `<window>/<name>`."""
        arrays: dict[str, NDArray[Any]] = {
            "model": np.array([self.model, self.version]),
            "blocks": np.array(self.layout.blocks, dtype=np.str_),
            "experts": np.array(self.layout.experts, np.int64),
        }
        for window, tally in self.windows.items():
            arrays |= {f"{window}/{name}": value for name, value in tally.to_arrays().items()}
            arrays[f"{window}/seconds"] = np.array(self.seconds[window])
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def unpack(cls, content: bytes) -> RoutingState:
        """Read what `pack` wrote.

        Raises:
            InvalidParameter: it is something else.
        """
        if not zipfile.is_zipfile(io.BytesIO(content)):  # NumPy would speak of pickles
            raise InvalidParameter("This is no routing state.")
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
            seconds = {window: float(arrays[f"{window}/seconds"]) for window in WINDOWS}
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InvalidParameter(f"This is no routing state ({error}).") from error
        return cls(model, version, layout, windows, seconds)
