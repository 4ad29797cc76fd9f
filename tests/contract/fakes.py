"""Stand-ins for the parts behind the borders, each once. The suites beside this file hold them to what is real."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import (
    BOXES,
    FEATURES,
    LOGITS,
    ROUTING,
    SCORES,
    Cost,
    Engine,
    EngineDescription,
    Label,
    Manifest,
    ModelInfo,
    OutputSpec,
    Preprocessing,
    RoutingLayout,
    RoutingOverrides,
    RoutingProfile,
    Row,
    ServedModel,
    Tensors,
)
from condconv_serve.domain.manifest import ArchitectureSpec, PreprocessingSpec, Provenance
from condconv_serve.errors import ModelNotFound, VersionNotFound
from condconv_serve.runtime.plan import EnginePlan
from condconv_serve.serving.versions import VersionStatus
from condconv_serve.store import Bundle, read_labels
from condconv_serve.store.aliases import NO_MIRROR, Alias, check_alias
from condconv_serve.telemetry.metrics import Metrics

LAYOUT = RoutingLayout(("block_1", "block_2"), (3, 3))
SHADE_FEATURES = 3
COMPUTED_BY = EngineDescription(engine="numpy", precision="float32", device="CPU", reason="a fake")


def even_layout(blocks: int | Sequence[str], experts: int) -> RoutingLayout:
    """Blocks with the same number of experts each."""
    names = [f"block_{number + 1}" for number in range(blocks)] if isinstance(blocks, int) else blocks
    return RoutingLayout(tuple(names), (experts,) * len(names))


def layout_of(weights: Any) -> RoutingLayout:
    """The layout of an array `[..., blocks, experts]` in which every block has all experts."""
    blocks, experts = np.shape(weights)[-2:]
    return even_layout(blocks, experts)


def model_info(
    name: str = "fake",
    version: str = "1",
    *,
    layout: RoutingLayout = LAYOUT,
    classes: int = 6,
    features: int = SHADE_FEATURES,
    labels: Sequence[Label] | None = None,
    image_size: int = 32,
    preprocessing: Preprocessing | None = None,
    profile: RoutingProfile | None = None,
) -> ModelInfo:
    """What a small classifier is; every other class has a synset."""
    labels = labels or [Label(i, f"class {i}", f"n{i}" if i % 2 else None) for i in range(classes)]
    preprocessing = preprocessing or Preprocessing(transform="pillow", image_size=image_size)
    manifest = Manifest(
        name=name,
        version=version,
        architecture=ArchitectureSpec(name="fake"),
        num_classes=len(labels),
        preprocessing=PreprocessingSpec.model_construct(  # smaller than a bundle's may be
            transform=preprocessing.transform,
            image_size=preprocessing.image_size,
            mean=preprocessing.mean,
            std=preprocessing.std,
        ),
        files={},
        provenance=Provenance(source="tests", method="made up"),
        licence="Apache-2.0",
    )
    return ModelInfo(
        manifest=manifest,
        labels=labels,
        preprocessing=preprocessing,
        outputs=(
            OutputSpec(LOGITS, (len(labels),)),
            OutputSpec(ROUTING, layout.shape),
            OutputSpec(FEATURES, (features,)),
        ),
        routing=layout,
        cost=Cost(parameters=1, multiply_adds=1),
        model_card="# Fake\n",
        routing_profile=profile,
    )


DETECTOR_PATCHES = 8
"""A `ColourDetector` looks at so many times so many patches, and each is a candidate box."""


def detector_info(
    name: str = "fake-detector", version: str = "1", *, layout: RoutingLayout = LAYOUT, image_size: int = 32
) -> ModelInfo:
    """What a small detector is, as `ColourDetector` computes it: it finds what is red, green, or blue."""
    labels = [Label(0, "red"), Label(1, "green", "n1"), Label(2, "blue")]
    preprocessing = Preprocessing(transform="stretch", image_size=image_size, interpolation="bilinear")
    info = model_info(name, version, layout=layout, labels=labels, preprocessing=preprocessing)
    return replace(
        info, manifest=info.manifest.model_copy(update={"task": "detection"}), outputs=detector_outputs(labels, layout)
    )


def detector_outputs(labels: Sequence[Label], layout: RoutingLayout) -> tuple[OutputSpec, ...]:
    """What a `ColourDetector` returns."""
    return (
        OutputSpec(BOXES, (DETECTOR_PATCHES**2, 4)),
        OutputSpec(SCORES, (DETECTOR_PATCHES**2, len(labels))),
        OutputSpec(ROUTING, layout.shape),
    )


class FakeEngine(ABC):
    """What all fakes note: `calls` by the rows' shape and the stream, and whether they are `closed`."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[tuple[int, ...], int]] = Counter()
        self.closed = threading.Event()

    def __call__(self, rows: Row, stream: int = 0, /) -> Tensors:
        if self.closed.is_set():
            raise RuntimeError("This engine has been closed.")
        self.calls[rows.shape, stream] += 1
        return self.compute(rows, stream)

    @abstractmethod
    def compute(self, rows: Row, stream: int) -> Tensors:
        """The answer to rows of one batch."""

    def close(self) -> None:
        if self.closed.is_set():
            raise RuntimeError("This engine has been closed before.")
        self.closed.set()


class ShadeEngine(FakeEngine):
    """Takes a row's shade for its answer: class `shade % classes` wins with a logit of 5.

    Routing weights are `weights[shade]`, `[256, blocks, experts]`; `shade / 255` throughout if there are none given.
    Features are `(shade, 255 - shade, 1)`.
    """

    def __init__(self, *, classes: int = 6, layout: RoutingLayout = LAYOUT, weights: Any | None = None) -> None:
        super().__init__()
        self._classes = classes
        self._weights = shade_weights(layout) if weights is None else np.asarray(weights, np.float32)

    def compute(self, rows: Row, stream: int) -> Tensors:
        shades = rows[:, 0, 0, 0].astype(int)
        logits = 5 * np.eye(self._classes, dtype=np.float32)[shades % self._classes]
        features = np.stack([shades, 255 - shades, np.ones_like(shades)], axis=1).astype(np.float32)
        return {LOGITS: logits, ROUTING: self._weights[shades], FEATURES: features}


class ColourDetector(FakeEngine):
    """Finds what is red, green, or blue: the classes 0, 1, 2; others score 0.

    Each of 8 x 8 patches is a candidate box, row by row; its score is how far its mean colour's share of a class is
    above the other two shares, from 0 to 1. Routing weights are the row's mean level / 255 wherever there is an expert.
    """

    def __init__(self, *, classes: int = 3, layout: RoutingLayout = LAYOUT) -> None:
        super().__init__()
        self._classes, self.layout = classes, layout
        edges = np.arange(DETECTOR_PATCHES) / DETECTOR_PATCHES
        tops, lefts = (grid.ravel() for grid in np.meshgrid(edges, edges, indexing="ij"))
        step = 1 / DETECTOR_PATCHES
        self._boxes = np.stack([tops, lefts, tops + step, lefts + step], axis=1).astype(np.float32)

    def compute(self, rows: Row, stream: int) -> Tensors:
        n, side = DETECTOR_PATCHES, rows.shape[1] // DETECTOR_PATCHES
        patches = rows[:, : n * side, : n * side].reshape(-1, n, side, n, side, 3).mean(axis=(2, 4), dtype=np.float32)
        shares = patches.reshape(len(rows), n * n, 3) / 255
        others = np.stack([np.delete(shares, colour, axis=2).max(axis=2) for colour in range(3)], axis=2)
        scores = np.zeros((len(rows), n * n, self._classes), np.float32)
        scores[..., :3] = np.clip(shares - others, 0, 1)[..., : self._classes]
        level = rows.mean(axis=(1, 2, 3), dtype=np.float32) / 255
        return {
            BOXES: np.broadcast_to(self._boxes, (len(rows), *self._boxes.shape)).copy(),
            SCORES: scores,
            ROUTING: (level[:, None, None] * self.layout.own).astype(np.float32),
        }


class ShadeDetector(FakeEngine):
    """Finds one object in every row: class `shade % classes` with a score of 0.9, in a box around the whole row.

    Routing weights are `shade / 255` throughout.
    """

    def __init__(self, *, classes: int = 6, layout: RoutingLayout = LAYOUT) -> None:
        super().__init__()
        self._classes, self._weights = classes, shade_weights(layout)

    def compute(self, rows: Row, stream: int) -> Tensors:
        shades = rows[:, 0, 0, 0].astype(int)
        return {
            BOXES: np.tile(np.array([[[0, 0, 1, 1]]], np.float32), (len(rows), 1, 1)),
            SCORES: 0.9 * np.eye(self._classes, dtype=np.float32)[shades % self._classes][:, None],
            ROUTING: self._weights[shades],
        }


def shade_detector(name: str = "fake", *, classes: int = 6) -> ServedModel:
    """A detector with a `ShadeDetector` for its engine."""
    info = model_info(name, classes=classes, preprocessing=detector_info().preprocessing)
    outputs = (OutputSpec(BOXES, (1, 4)), OutputSpec(SCORES, (1, classes)), OutputSpec(ROUTING, info.routing.shape))
    manifest = info.manifest.model_copy(update={"task": "detection"})
    return served_model(replace(info, manifest=manifest, outputs=outputs), ShadeDetector(classes=classes))


class ColourAblation:
    """The ablation of a `ColourDetector`: expert `i` of all blocks together bears the scores of class `i`.

    Its scores change as the sum of these experts' weights does, up to 1.
    """

    def __init__(self, engine: ColourDetector) -> None:
        self._engine = engine

    def __call__(self, row: Row, overrides: RoutingOverrides, *, stopped: Callable[[], bool]) -> Tensors | None:
        if stopped():
            return None
        alone, own = self._engine(row[None]), self._engine(row[None])[ROUTING][0]
        used = changed_weights(own, overrides, self._engine.layout)
        share = used.sum(axis=1) / np.maximum(own.sum(axis=0), 1e-9)
        classes = min(alone[SCORES].shape[-1], share.shape[-1])
        scores = np.repeat(alone[SCORES], 1 + len(used), axis=0)
        scores[1:, :, :classes] = np.clip(scores[1:, :, :classes] * share[:, None, :classes], 0, 1)
        return {
            BOXES: np.repeat(alone[BOXES], 1 + len(used), axis=0),
            SCORES: scores,
            ROUTING: np.concatenate([own[None], used]).astype(np.float32),
        }

    def close(self) -> None:
        self._engine.close()


def changed_weights(own: Any, overrides: RoutingOverrides, layout: RoutingLayout) -> NDArray[np.float64]:
    """The weights `[V, blocks, experts]` that variants use, of an image's own ones, if no block depends on another."""
    given = np.where(layout.own, overrides.weights, np.nan)
    mean = layout.own * own.sum(axis=1, keepdims=True) / layout.own.sum(axis=1, keepdims=True)
    used = np.where(np.isnan(given), np.where(overrides.uniform[..., None], mean, own), given)
    return used * layout.own


def shade_weights(layout: RoutingLayout) -> NDArray[np.float32]:
    """Routing weights `[256, blocks, experts]` by shade: `shade / 255` wherever there is an expert."""
    return (np.arange(256)[:, None, None] / 255 * layout.own).astype(np.float32)


class FunctionEngine(FakeEngine):
    """An engine that is a function of rows and of the stream's number."""

    def __init__(self, compute: Callable[[Row, int], Tensors]) -> None:
        super().__init__()
        self._compute = compute

    def compute(self, rows: Row, stream: int) -> Tensors:
        return self._compute(rows, stream)


class ShadeAblation:
    """The ablation of a `ShadeEngine`: its logits, unless a weight was changed to 0, which class `lost` wins with 3.

    It waits while `go` is cleared, unless stopped; `calls` counts, and `started` says that there was one.
    """

    def __init__(
        self, *, classes: int = 6, layout: RoutingLayout = LAYOUT, weights: Any | None = None, lost: int = 1
    ) -> None:
        self._classes, self._lost, self._layout = classes, lost, layout
        self._weights = shade_weights(layout) if weights is None else np.asarray(weights, np.float32)
        self.go, self.started, self.closed = threading.Event(), threading.Event(), threading.Event()
        self.go.set()
        self.calls = 0

    def __call__(self, row: Row, overrides: RoutingOverrides, *, stopped: Callable[[], bool]) -> Tensors | None:
        if self.closed.is_set():
            raise RuntimeError("This ablation has been closed.")
        self.calls += 1
        self.started.set()
        while not self.go.wait(0.002):
            if stopped():
                return None
        if stopped():
            return None
        shade = int(row[0, 0, 0])
        own = self._weights[shade]
        used = changed_weights(own, overrides, self._layout)
        lost = (np.where(self._layout.own, overrides.weights, np.nan) == 0).any(axis=(1, 2))
        by_class = np.eye(self._classes, dtype=np.float32)
        logits = np.where(lost[:, None], 3 * by_class[self._lost], 5 * by_class[shade % self._classes])
        return {
            LOGITS: np.concatenate([5 * by_class[[shade % self._classes]], logits]).astype(np.float32),
            ROUTING: np.concatenate([own[None], used]).astype(np.float32),
        }

    def close(self) -> None:
        self.closed.set()


def served_model(info: ModelInfo | None = None, engine: Engine | None = None) -> ServedModel:
    """A model with an engine that needs no TensorFlow."""
    info = info or model_info()
    return ServedModel(
        info=info,
        engine=engine or ShadeEngine(classes=len(info.labels), layout=info.routing),
        computed_by=COMPUTED_BY,
    )


def load_shades(bundle: Bundle, plan: EnginePlan | None = None, *, metrics: Metrics | None = None) -> ServedModel:
    """Make a `ShadeEngine` of a bundle, whatever its network is; only its labels are read."""
    manifest, labels = bundle.manifest, read_labels(bundle)
    info = model_info(labels=labels, preprocessing=manifest.preprocessing.to_domain())
    return served_model(replace(info, manifest=manifest, model_card=bundle.model_card))


class FakeModels:
    """Models by name and version; the first one is the default."""

    def __init__(self, *models: ServedModel) -> None:
        self.served: dict[str, dict[str, ServedModel]] = {}
        for model in models:
            self.replace(model)

    def replace(self, model: ServedModel) -> None:
        """Serve this one in place of what has its name and version."""
        self.served.setdefault(model.name, {})[model.version] = model

    @property
    def default_model(self) -> str | None:
        return next(iter(self.served), None)

    def models(self) -> Mapping[str, Mapping[str, ServedModel]]:
        return self.served

    def aliases(self, name: str) -> Mapping[str, Alias]:
        return {}

    def get(self, name: str | None = None, version: str | None = None, *, key: str | None = None) -> ServedModel:
        name = name or self.default_model
        if name is None or name not in self.served:
            known = ", ".join(self.served) or "none"
            raise ModelNotFound(f"Model {name!r} is not served; served are: {known}.")
        versions = self.served[name]
        version = version or max(versions, key=int)
        if version not in versions:
            raise VersionNotFound(
                f"Model {name} is not served in version {version!r}; served are: {', '.join(versions)}."
            )
        return versions[version]

    def lease(
        self, name: str | None = None, version: str | None = None, *, key: str | None = None
    ) -> contextlib.AbstractContextManager[ServedModel]:
        return contextlib.nullcontext(self.get(name, version, key=key))


class NoVersions:
    """A store without models, as an admin sees it."""

    def status(self) -> Mapping[str, list[VersionStatus]]:
        return {}

    async def load(self, name: str, version: str) -> VersionStatus:
        raise _no_model(name)

    unload = load

    async def set_alias(
        self, name: str, alias: str, versions: Mapping[str, int], *, mirror: Mapping[str, int] = NO_MIRROR
    ) -> Alias:
        check_alias(alias, versions, mirror=mirror)
        raise _no_model(name)

    async def roll_back(self, name: str, alias: str) -> Alias:
        raise _no_model(name)

    async def delete_alias(self, name: str, alias: str) -> None:
        raise _no_model(name)


def _no_model(name: str) -> ModelNotFound:
    return ModelNotFound(f"There is no model {name!r} in the store; there are: none.")
