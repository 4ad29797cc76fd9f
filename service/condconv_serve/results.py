"""What you get for each image: the same from a model in your own process (`load`) and from a server (`Client`)."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from condconv_serve.domain import ClassScore, DetectedObject, RoutingChange, RoutingTrace, Timings
from condconv_serve.errors import ServiceError

OnError = Literal["keep", "raise"]
"""What happens if one image among several fails. keep: its result has the error. raise: the error is raised."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """Which model answered."""

    name: str
    version: str

    def __str__(self) -> str:
        """As commands write it: `NAME/VERSION`."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ForImage:
    """What every result says: which image it is for, and how it went.

    Attributes:
        id: the image's place among those that you gave, from 0, or the name that you gave it.
        filename: of the image's file; None if it has none.
        error: why there is no answer; None if all is well.
        model: what answered; None if nothing did.
        timings: how long each stage took, in seconds; None if it failed.
        batch_size: how many images were computed together; None if it failed.
        cached: whether the answer is one that the server had computed for an equal image; None if it keeps none.
        request_id: of the request to a server, as its log has it; None without a server.
    """

    id: str
    filename: str | None = None
    error: ServiceError | None = None
    model: ModelVersion | None = None
    timings: Timings | None = None
    batch_size: int | None = None
    cached: bool | None = None
    request_id: str | None = None

    @property
    def ok(self) -> bool:
        """Whether there is an answer."""
        return self.error is None

    def raise_error(self) -> None:
        """Raise the image's error, if there is one; the message says which image it is.

        Raises:
            ServiceError: why there is no answer.
        """
        if self.error is not None:
            raised = copy.copy(self.error)
            raised.args = (f"{self.filename or f'Image {self.id}'}: {self.error}",)
            raise raised from self.error

    def __repr__(self) -> str:
        """Short, for notebooks."""
        what = f"{type(self.error).__name__}: {self.error}" if self.error is not None else self._summary()
        return f"{type(self).__name__}({self.filename or self.id!r}: {what})"

    @abstractmethod
    def _summary(self) -> str: ...


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImagePrediction(ForImage):
    """The classes of one image.

    Attributes:
        classes: the most probable ones, best first; empty if the image failed, or no class reaches the threshold.
        routing: its routing weights; None if it failed or they weren't asked for.
    """

    classes: tuple[ClassScore, ...] = ()
    routing: RoutingTrace | None = None

    @property
    def top(self) -> ClassScore | None:
        """The most probable class; None if no class reaches the threshold.

        Raises:
            ServiceError: the image's error, if it failed.
        """
        self.raise_error()
        return self.classes[0] if self.classes else None

    @property
    def label(self) -> str | None:
        """Name of the most probable class; as `top`."""
        return None if self.top is None else self.top.label

    @property
    def probability(self) -> float | None:
        """Probability of the most probable class, 0 to 1; as `top`."""
        return None if self.top is None else self.top.probability

    def _summary(self) -> str:
        return ", ".join(f"{scored.label} {scored.probability:.1%}" for scored in self.classes) or "no class"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImageDetections(ForImage):
    """The objects that were found in one image.

    Attributes:
        objects: the highest score first; empty if the image failed, or nothing was found.
        width: of the upright photo, in pixels; None if it failed.
        height: of the upright photo, in pixels; None if it failed.
        routing: its routing weights; None if it failed or they weren't asked for.
    """

    objects: tuple[DetectedObject, ...] = ()
    width: int | None = None
    height: int | None = None
    routing: RoutingTrace | None = None

    def counts(self) -> dict[str, int]:
        """How many objects there are of each class that was found, by label; most frequent first.

        Raises:
            ServiceError: the image's error, if it failed.
        """
        self.raise_error()
        return dict(Counter(found.label for found in self.objects).most_common())

    def _summary(self) -> str:
        return counted(self.objects)


def counted(objects: Iterable[DetectedObject]) -> str:
    """How many objects there are of each class, in words."""
    counts = Counter(found.label for found in objects).most_common()
    return ", ".join(f"{count} {label}" for label, count in counts) or "no object"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockInsight:
    """What stands out in one block's routing. A distance is the root mean square of the differences of weights.

    Attributes:
        block: its name.
        entropy: 0 if one expert has all the weight, 1 if all have the same.
        strongest: the experts with the largest weights, largest first; at most three.
        reference_distance: to the mean of the model's reference profile.
        typical_distance: the median of that distance, for the reference's own images.
        unusual_above: one in twenty of the reference's own images is farther away.
        class_distance: to the mean of images with the same predicted class.
    """

    block: str
    entropy: float
    strongest: tuple[int, ...]
    reference_distance: float | None = None
    typical_distance: float | None = None
    unusual_above: float | None = None
    class_distance: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassImages:
    """Which images a class's mean is made of: those of the reference profile, or of live traffic."""

    index: int
    images: int
    source: Literal["reference", "live"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingInsight:
    """What stands out in one image's routing: in each block, in order, and over all blocks.

    Attributes:
        blocks: each of them.
        reference_distance: as for a block, over all of them.
        typical_distance: as for a block.
        unusual_above: as for a block.
        class_distance: as for a block.
        unusual: whether the image is farther from the reference than `unusual_above`; None without a reference profile
            of at least 20 images.
        reference_images: how many images the reference has.
        class_profile: which images `class_distance` compares with.
    """

    blocks: tuple[BlockInsight, ...]
    reference_distance: float | None = None
    typical_distance: float | None = None
    unusual_above: float | None = None
    unusual: bool | None = None
    reference_images: int | None = None
    class_distance: float | None = None
    class_profile: ClassImages | None = None

    @classmethod
    def of(cls, view: Mapping[str, Any]) -> RoutingInsight:
        """Make it of plain values, as `condconv_serve.routing.views.insight_view` and answers have them."""
        return _INSIGHT.validate_python(view)


_INSIGHT = TypeAdapter(RoutingInsight)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImageRouting(ImagePrediction):
    """The routing weights of one image, what was found in it, and what stands out.

    Attributes:
        insight: entropy and strongest experts of each block, and how far the image is from others; None if it failed.
        objects: a detector's, in place of classes; see `ImageDetections`.
        width: of the upright photo, in pixels; None if no detector answered.
        height: of the upright photo, in pixels; None if no detector answered.
    """

    insight: RoutingInsight | None = None
    objects: tuple[DetectedObject, ...] = ()
    width: int | None = None
    height: int | None = None

    def _summary(self) -> str:
        return super()._summary() if self.width is None else counted(self.objects)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImageFeatures(ForImage):
    """The embedding of one image.

    Attributes:
        features: float32 `[features]`, pooled, before the classifier; None if the image failed.
        logits: float32 `[classes]`, before the softmax; None if it failed or they weren't asked for.
    """

    features: NDArray[np.float32] | None = None
    logits: NDArray[np.float32] | None = None

    def _summary(self) -> str:
        return "no features" if self.features is None else f"float32 {list(self.features.shape)}"


@dataclass(frozen=True, kw_only=True, eq=False)
class AblatedVariant:
    """What the answer would have been with another routing.

    Attributes:
        name: yours, or one such as `block_8 without expert 2`.
        changes: what was changed.
        probability: of the class that is the best one with the original routing.
        difference: how much higher that is than with the original routing.
        top: the most probable class with this routing.
        same_top: whether that is the same class.
        routing: the weights that were used, in all blocks; None if they weren't asked for.
    """

    name: str
    changes: tuple[RoutingChange, ...]
    probability: float
    difference: float
    top: ClassScore
    same_top: bool
    routing: RoutingTrace | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImageAblation(ForImage):
    """What the answer to one image would have been with other routings.

    Attributes:
        top: the most probable class with the original routing.
        routing: the original routing.
        variants: in the order of yours, or else by block and expert.
    """

    top: ClassScore
    routing: RoutingTrace
    variants: tuple[AblatedVariant, ...]

    def changed(self) -> tuple[AblatedVariant, ...]:
        """The variants in which another class wins."""
        return tuple(variant for variant in self.variants if not variant.same_top)

    def _summary(self) -> str:
        return f"{self.top.label} {self.top.probability:.1%}, {len(self.variants)} variants"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptObject:
    """An object that is found with another routing, too.

    Attributes:
        before: with the original routing.
        now: with the other one.
        difference: how much higher the score is now.
        overlap: of its boxes then and now: intersection over union, 0.5 to 1.
    """

    before: DetectedObject
    now: DetectedObject
    difference: float
    overlap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LostObject:
    """An object that isn't found with another routing.

    Attributes:
        before: with the original routing.
        score: what is left: the highest score of its class in a box that overlaps its own by 0.5 or more, or 0.
        difference: how much higher that is than its score before.
    """

    before: DetectedObject
    score: float
    difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NewObject:
    """An object that is found with another routing only.

    Attributes:
        now: with that routing.
        difference: how much higher its score is than the highest one of its class in a box there before.
    """

    now: DetectedObject
    difference: float


@dataclass(frozen=True, kw_only=True, eq=False)
class AblatedDetections:
    """What a detector would have found with another routing.

    Attributes:
        name: yours, or one such as `block_8 without expert 2`.
        changes: what was changed.
        similarity: 1 if all scores are those of the original routing, 0 if nothing is left of them.
        kept: objects that are still found.
        lost: objects that aren't found any more.
        new: objects that weren't found before.
        routing: the weights that were used, in all blocks; None if they weren't asked for.
    """

    name: str
    changes: tuple[RoutingChange, ...]
    similarity: float
    kept: tuple[KeptObject, ...]
    lost: tuple[LostObject, ...]
    new: tuple[NewObject, ...]
    routing: RoutingTrace | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DetectionAblation(ForImage):
    """What a detector would have found in one image with other routings.

    Attributes:
        objects: with the original routing, the highest score first.
        width: of the upright photo, in pixels.
        height: of the upright photo, in pixels.
        routing: the original routing.
        variants: in the order of yours, or else by block and expert.
    """

    objects: tuple[DetectedObject, ...]
    width: int
    height: int
    routing: RoutingTrace
    variants: tuple[AblatedDetections, ...]

    def changed(self) -> tuple[AblatedDetections, ...]:
        """The variants in which objects are lost or new."""
        return tuple(variant for variant in self.variants if variant.lost or variant.new)

    def _summary(self) -> str:
        return f"{counted(self.objects)}, {len(self.variants)} variants"
