"""How much of the routing's variance lies between classes, corrected for chance, with an interval and a p-value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CONFIDENCE = 0.95
"""Of the intervals."""
CONSTANT = 1e-6
"""Weights that deviate less than this from their mean are all the same, but for rounding."""
_FEWEST, _MOST = 199, 1999
"""Resamples."""
_VALUES = 500_000_000
"""Values resampled in all, about, if that isn't too few resamples: seconds."""
_VALUES_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EffectSize:
    """What one-way analysis of variance says of each block, all of its experts taken together.

    Attributes:
        raw: eta squared `[blocks]`: the share of the sum of squares that lies between class means. Chance alone gives
            `chance`, so it says little where classes have few images.
        share: epsilon squared `[blocks]` (Kelley, 1935; also called adjusted R squared): `raw` corrected for chance,
            `(raw - chance) / (1 - chance)`. Without any difference between classes it is 0 on average, so it may be
            below 0. 1 if all images of a class are routed alike. NaN where it can't be known: see `unknown`.
        low: `[blocks]`, the lower end of the confidence interval of `share`, 0 to 1.
        high: `[blocks]`, its upper end.
        p: `[blocks]`, how probable so large a share is if classes make no difference (permutation test).
        chance: what `raw` is on average if classes make no difference: `(K - 1) / (N - 1)`.
        within: standard deviation of a class's images `[blocks]`: root mean square over experts that aren't constant,
            from `N - K` degrees of freedom.
        between: standard deviation of the classes' own means `[blocks]`, without what their images' scatter adds.
        constant: bool `[blocks, experts]`: experts with the same weight for all images.
        resamples: how many the intervals and the p-values are made of.
        unknown: why no share can be known at all; None if it can be.
    """

    raw: Floats
    share: Floats
    low: Floats
    high: Floats
    p: Floats
    chance: float
    within: Floats
    between: Floats
    constant: NDArray[np.bool_]
    resamples: int
    unknown: str | None = None


def effect_size(weights: NDArray[np.floating], labels: Ints, *, resamples: int | None = None) -> EffectSize:
    """Compare the variance between classes with that within them.

    The interval holds each share with which what was found isn't among the 2.5 % of smallest or of largest results
    (Steiger, 2004). Results for a share are made by a bootstrap of whole images' residuals, so experts may depend on
    each other and weights needn't be normal; images of all classes are taken to scatter alike. The same images always
    give the same figures.

    Args:
        weights: `[N, blocks, experts]`; zeros where a block has fewer experts than another.
        labels: the class of each image `[N]`, 0 to `K - 1`, each of them given.
        resamples: by default as many as take a few seconds at most, 1999 where images are few.
    """
    order = np.argsort(labels, kind="stable")
    values = np.asarray(weights, np.float64)[order]
    values = values - values.mean(axis=0)
    sizes = np.bincount(labels)
    images, classes = len(values), len(sizes)
    constant = np.sqrt((values**2).mean(axis=0)) < CONSTANT
    values[:, constant] = 0
    total = _by_block(values).sum(axis=0)
    means = _sums(values, sizes) / sizes[:, None, None]
    between = (sizes[:, None, None] * means**2).sum(axis=(0, 2))
    within = np.maximum(total - between, 0)
    chance = (classes - 1) / max(images - 1, 1)
    known = total > 0
    raw = np.divide(between, total, out=np.full_like(total, np.nan), where=known)
    nothing = np.full_like(total, np.nan)
    experts = np.maximum((~constant).sum(axis=1), 1)
    unknown = _unknown(images, classes)
    if unknown:
        deviation = np.sqrt(within / max(images - classes, 1) / experts) if classes < images else nothing
        return EffectSize(
            raw=raw, share=nothing, low=nothing, high=nothing, p=nothing, chance=chance, within=deviation,
            between=nothing, constant=constant, resamples=0, unknown=unknown,
        )  # fmt: skip
    scatter = within / (images - classes)
    share = (raw - chance) / (1 - chance)
    count = resamples or int(np.clip(_VALUES // (2 * values.size), _FEWEST, _MOST))
    low, high = _interval(values, means, sizes, count)
    every_mean = np.where(known, share, 0) * total / (images - 1)
    return EffectSize(
        raw=raw,
        share=share,
        low=np.where(known, low, np.nan),
        high=np.where(known, high, np.nan),
        p=np.where(known, _p_values(values, sizes, between, count), np.nan),
        chance=chance,
        within=np.sqrt(scatter / experts),
        between=np.sqrt(np.maximum(every_mean, 0) / experts),
        constant=constant,
        resamples=count,
    )


def _unknown(images: int, classes: int) -> str | None:
    if classes < 2:
        return "There is one class only, so there is nothing to compare."
    if classes == images:
        return "Each class has one image only, so classes can't be told from images: give some of them more."
    return None


def _interval(values: Floats, means: Floats, sizes: Ints, count: int) -> tuple[Floats, Floats]:
    """Both ends of the interval, `[blocks]` each.

    Suppose that the true class means are `s` times those found. Then a resample's sum of squares between classes is
    `s² spread + 2 s cross + noise`, and the one within doesn't depend on `s`. So for each resample it can be solved
    which `s` gives the ratio that was found; the quantiles of these, as shares, are the ends.
    """
    images, classes = len(values), len(sizes)
    residuals = values - np.repeat(means, sizes, axis=0)
    several = np.repeat(sizes > 1, sizes)
    # A residual is smaller than what it stands for, most of all in small classes.
    residuals = residuals[several] / np.sqrt(1 - 1 / np.repeat(sizes, sizes)[several])[:, None, None]
    residuals -= residuals.mean(axis=0)
    scatter = _by_block(values - np.repeat(means, sizes, axis=0)).sum(axis=0) / (images - classes)
    spread = (sizes[:, None, None] * means**2).sum(axis=(0, 2))
    found = np.divide(spread, scatter * (images - classes), out=np.zeros_like(spread), where=scatter > 0)
    pooled = _by_block(residuals).sum(axis=0) / len(residuals)
    residuals *= np.sqrt(np.divide(scatter, pooled, out=np.zeros_like(pooled), where=pooled > 0))[:, None]
    squares, directions, shares = _by_block(residuals), means.astype(np.float32), []
    residuals = residuals.astype(np.float32)
    for rows in _draws(len(residuals), images, values[0].size, count, replace=True):
        sums = _sums(residuals[rows], sizes)
        between = _between(sums, sizes)
        noise = between - _by_block(sums.sum(axis=1)) / images
        within = squares[rows].sum(axis=1) - between
        cross = (sums * directions).sum(axis=1, dtype=np.float64).sum(axis=2)
        missing = within * found - noise
        root = np.sqrt(np.maximum(cross**2 + spread * missing, 0)) - cross
        scale = np.divide(root, spread, out=np.zeros_like(root), where=(spread > 0) & (missing > 0))
        effect = scale**2 * spread
        variance = effect + (images - 1) * scatter
        shares.append(np.divide(effect, variance, out=np.zeros_like(effect), where=variance > 0))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(shares), (tail, 1 - tail), axis=0)
    # Nothing scatters within a class: all of the variance lies between classes, whatever is resampled.
    alike = (scatter <= 0) & (spread > 0)
    return np.where(alike, 1.0, low), np.where(alike, 1.0, high)


def _p_values(values: Floats, sizes: Ints, between: Floats, count: int) -> Floats:
    """How many of so many permutations of the labels give as much between classes as was found, `[blocks]`."""
    above, single = np.zeros(len(between)), values.astype(np.float32)
    for rows in _draws(len(values), len(values), values[0].size, count, replace=False):
        # Some permutations change nothing but the rounding.
        above += (_between(_sums(single[rows], sizes), sizes) >= between * (1 - 1e-5)).sum(axis=0)
    result: Floats = (1 + above) / (1 + count)
    return result


def _draws(among: int, images: int, size: int, count: int, *, replace: bool) -> Iterator[Ints]:
    """Places of images `[some, images]`, as many as memory is there for, `count` in all."""
    rng = np.random.default_rng(0)
    at_once = max(1, _VALUES_AT_ONCE // max(images * size, 1))
    for start in range(0, count, at_once):
        some = min(at_once, count - start)
        if replace:
            yield rng.integers(among, size=(some, images))
        else:
            yield rng.permuted(np.tile(np.arange(among), (some, 1)), axis=1)


def _by_block(values: Floats) -> Floats:
    """Sums of squares over the experts, `[..., blocks]` of `[..., blocks, experts]`."""
    result: Floats = (values**2).sum(axis=-1, dtype=np.float64)
    return result


def _between(sums: NDArray[np.floating], sizes: Ints) -> Floats:
    """Sums of squares of class means `[..., blocks]`, from sums by class `[..., K, blocks, experts]`."""
    # Classes first: adding up a few experts at a time is slow.
    squares = np.square(sums) / sizes[:, None, None].astype(sums.dtype)
    result: Floats = squares.sum(axis=-3, dtype=np.float64).sum(axis=-1)
    return result


def _sums(values: NDArray[np.floating], sizes: Ints) -> NDArray[np.floating]:
    """Sums by class `[..., K, blocks, experts]` of `[..., N, blocks, experts]`, ordered by class."""
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    result: NDArray[np.floating] = np.add.reduceat(values, starts, axis=-3)
    return result
