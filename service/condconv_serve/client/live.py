"""What a server says about live traffic. Names and meanings are those of its JSON, `GET /routing`."""

from __future__ import annotations

from dataclasses import dataclass

from condconv_serve.results import ModelVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean and standard deviation over images."""

    mean: float
    deviation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far a block has moved from the model's reference profile.

    Attributes:
        psi: population stability index of the weights' distributions, the mean over experts.
        js: Jensen-Shannon divergence in bits, 0 to 1.
        psi_by_chance: the psi that chance alone gives with this number of images.
        alert_above: a psi above this is an alert.
        alert: whether it is.
    """

    psi: float
    js: float
    psi_by_chance: float
    alert_above: float
    alert: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertUse:
    """How one expert is used.

    Attributes:
        expert: its number.
        mean: of its weights.
        deviation: of its weights.
        load: share of images whose strongest expert this is.
        active: share of images that give it a weight above 0.5.
        histogram: images by weight; bins as in `LiveRouting.histogram_edges`.
    """

    expert: int
    mean: float
    deviation: float
    load: float
    active: float
    histogram: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveBlock:
    """How one block's experts are used; `drift` is None without images, or without a reference profile."""

    block: str
    entropy: Spread
    experts: tuple[ExpertUse, ...]
    drift: Drift | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedClass:
    """A predicted class and its images."""

    index: int
    label: str
    images: int
    synset: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveClasses:
    """The predicted classes of a window. With a detector an image counts for each class found in it, or for none.

    Attributes:
        known: how many classes have statistics of their own.
        dropped_images: images of classes that were dropped, since more frequent ones filled the memory.
        most_frequent: the most frequent ones first.
    """

    known: int
    dropped_images: int
    most_frequent: tuple[CountedClass, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceBlock:
    """One block of the reference profile, by expert."""

    block: str
    entropy: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    load: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The model's reference profile, and how many images it is made of."""

    images: int
    blocks: tuple[ReferenceBlock, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRouting:
    """What live traffic of one version does.

    Attributes:
        model: which version.
        window: `1m`, `15m` or `all`.
        seconds: how far the window reaches back now.
        images: how many images it holds.
        histogram_edges: edges of the bins of weights.
        blocks: each CondConv block, in order.
        classes: the predicted classes.
        drift_alert: whether any block drifts; None if that can't be said.
        reference: the reference profile; None if the bundle has none.
    """

    model: ModelVersion
    window: str
    seconds: float
    images: int
    histogram_edges: tuple[float, ...]
    blocks: tuple[LiveBlock, ...]
    classes: LiveClasses
    drift_alert: bool | None = None
    reference: Reference | None = None
