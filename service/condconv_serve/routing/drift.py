"""How far live routing has moved from a reference profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import RoutingLayout, RoutingProfile
from condconv_serve.routing.tally import BINS, Counts, Floats, Tally

BIN_SHARE = 0.1
"""Neighbouring bins are joined until each holds at least this share of the reference's images."""
SMOOTHING = 0.5
"""Images added to each joined bin, so that no logarithm is infinite."""
PSI_ALERT = 0.2
"""A block's drift is worth an alert if it exceeds what chance explains by more than this; `docs/routing.md` says
why."""
_Z = 3.0  # deviations of a normal distribution that count as chance


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDrift:
    """Drift of one block: the mean over its experts.

    Attributes:
        psi: population stability index, `sum((p - q) * ln(p / q))` over the bins of the weights' distributions.
        js: Jensen-Shannon divergence in bits, 0 to 1.
        psi_by_chance: the psi that is expected without drift, with this number of images.
        alert_above: a psi above this counts as drift.
    """

    psi: float
    js: float
    psi_by_chance: float
    alert_above: float

    @property
    def alert(self) -> bool:
        """Whether this is more than chance and the threshold allow."""
        return self.psi > self.alert_above


class DriftMeter:
    """Compares with one profile.

    Each expert's weights are compared on bins of its own: the histogram's twenty, joined with their neighbours until
    each holds a tenth of the reference's images, since a bin that is nearly empty there would decide everything.
    """

    def __init__(self, profile: RoutingProfile, layout: RoutingLayout) -> None:
        """Join the bins.

        Args:
            profile: to compare with.
            layout: of the network that it is a profile of.
        """
        self._reference_images = profile.images
        self._groups, self._sizes = _join(profile.histogram, profile.images)
        self._reference = self._regroup(profile.histogram)
        self._own = layout.own

    def measure(self, tally: Tally) -> list[BlockDrift]:
        """Drift of each block; empty without images on either side, or if the blocks and experts are others."""
        if not tally.count or not self._reference_images or tally.histogram.shape != self._groups.shape:
            return []
        used = np.arange(BINS) < self._sizes[..., None]
        p, q = (self._shares(counts, used) for counts in (self._regroup(tally.histogram), self._reference))
        psi = np.where(used, (p - q) * np.log(p / q), 0).sum(axis=-1)
        middle = (p + q) / 2
        js = np.where(used, p * np.log2(p / middle) + q * np.log2(q / middle), 0).sum(axis=-1) / 2
        # Without drift, PSI is about chi-squared with one degree of freedom less than there are bins, times this.
        scale = 1 / tally.count + 1 / self._reference_images
        freedom = self._sizes - 1
        # A block's experts needn't be independent, so averaging them is not counted upon to lessen chance.
        limit = PSI_ALERT + scale * self._mean(_chi_squared_limit(freedom))
        return [
            BlockDrift(psi=float(a), js=float(b), psi_by_chance=float(c), alert_above=float(d))
            for a, b, c, d in zip(self._mean(psi), self._mean(js), scale * self._mean(freedom), limit, strict=True)
        ]

    def _mean(self, values: Floats | Counts) -> Floats:
        """Of each block over its experts."""
        result: Floats = np.mean(values, axis=-1, where=self._own)
        return result

    def _regroup(self, histogram: Counts) -> Counts:
        counts = np.zeros_like(self._groups)
        blocks, experts = np.arange(counts.shape[0])[:, None, None], np.arange(counts.shape[1])[:, None]
        np.add.at(counts, (blocks, experts, self._groups), histogram)
        return counts

    @staticmethod
    def _shares(counts: Counts, used: NDArray[np.bool_]) -> Floats:
        smoothed = np.where(used, counts + SMOOTHING, 0)
        shares: Floats = smoothed / smoothed.sum(axis=-1, keepdims=True)
        return np.where(used, shares, 1.0)


def _join(histogram: Counts, images: int) -> tuple[Counts, Counts]:
    """Which joined bin each bin belongs to `[blocks, experts, BINS]`, and how many there are `[blocks, experts]`."""
    least = max(BIN_SHARE * images, 1)
    groups = [[_join_expert(counts, images, least) for counts in block] for block in histogram.tolist()]
    joined = np.array(groups, np.int64).reshape(histogram.shape)
    return joined, joined[..., -1] + 1


def _join_expert(counts: Sequence[int], images: int, least: float) -> list[int]:
    groups, group, held, left = [], 0, 0, images
    for count in counts:
        if held >= least and left >= least:  # what is left must be enough for one more
            group, held = group + 1, 0
        groups.append(group)
        held, left = held + count, left - count
    return groups


def _chi_squared_limit(freedom: Counts) -> Floats:
    """What chi-squared hardly ever exceeds by chance (Wilson and Hilferty, 1931)."""
    k = np.maximum(freedom, 1)
    limit: Floats = k * (1 - 2 / (9 * k) + _Z * np.sqrt(2 / (9 * k))) ** 3
    return np.where(freedom > 0, limit, 0.0)
