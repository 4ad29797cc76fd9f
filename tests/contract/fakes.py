"""Stand-ins for the parts behind the borders, each once. The suites beside this file hold them to what is real."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from condconv_serve.domain import (
    LOGITS,
    ROUTING,
    Cost,
    Engine,
    EngineDescription,
    Label,
    Manifest,
    ModelInfo,
    OutputSpec,
    Preprocessing,
    RoutingLayout,
    RoutingProfile,
    Row,
    ServedModel,
    Tensors,
)
from condconv_serve.domain.manifest import ArchitectureSpec, PreprocessingSpec, Provenance
from condconv_serve.errors import ModelNotFound, VersionNotFound
from condconv_serve.serving.versions import VersionStatus
from condconv_serve.store.aliases import Alias

LAYOUT = RoutingLayout(("block_1", "block_2"), (3, 3))
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
        preprocessing=PreprocessingSpec.model_construct(transform="pillow", image_size=preprocessing.image_size),
        files={},
        provenance=Provenance(source="tests", method="made up"),
        licence="Apache-2.0",
    )
    return ModelInfo(
        manifest=manifest,
        labels=labels,
        preprocessing=preprocessing,
        outputs=(OutputSpec(LOGITS, (len(labels),)), OutputSpec(ROUTING, layout.shape)),
        routing=layout,
        cost=Cost(parameters=1, multiply_adds=1),
        model_card="# Fake\n",
        routing_profile=profile,
    )


class ShadeEngine:
    """Takes a row's shade for its answer: class `shade % classes` wins with a logit of 5.

    Routing weights are `weights[shade]`, `[256, blocks, experts]`; `shade / 255` throughout if there are none given.
    """

    def __init__(self, *, classes: int = 6, layout: RoutingLayout = LAYOUT, weights: Any | None = None) -> None:
        self._classes = classes
        if weights is None:
            weights = np.broadcast_to(np.arange(256)[:, None, None] / np.float32(255), (256, *layout.shape))
        self._weights = np.asarray(weights, np.float32)
        self.closed = False

    def __call__(self, rows: Row, stream: int = 0, /) -> Tensors:
        shades = rows[:, 0, 0, 0].astype(int)
        logits = 5 * np.eye(self._classes, dtype=np.float32)[shades % self._classes]
        return {LOGITS: logits, ROUTING: self._weights[shades]}

    def close(self) -> None:
        self.closed = True


class FunctionEngine:
    """An engine that is a function of rows and of the stream's number."""

    def __init__(self, compute: Callable[[Row, int], Tensors]) -> None:
        self._compute = compute
        self.closed = False

    def __call__(self, rows: Row, stream: int = 0, /) -> Tensors:
        return self._compute(rows, stream)

    def close(self) -> None:
        self.closed = True


def served_model(info: ModelInfo | None = None, engine: Engine | None = None) -> ServedModel:
    """A model with an engine that needs no TensorFlow."""
    info = info or model_info()
    return ServedModel(
        info=info,
        engine=engine or ShadeEngine(classes=len(info.labels), layout=info.routing),
        computed_by=COMPUTED_BY,
    )


class FakeModels:
    """Models by name and version; the first one is the default."""

    def __init__(self, *models: ServedModel) -> None:
        self.served: dict[str, dict[str, ServedModel]] = {}
        for model in models:
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
            raise VersionNotFound(f"Model {name} is not served in version {version!r}.")
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
        raise ModelNotFound(f"There is no model {name!r} in the store; there are: none.")

    unload = load

    async def set_alias(self, name: str, alias: str, versions: Mapping[str, int]) -> Alias:
        raise ModelNotFound(f"There is no model {name!r} in the store; there are: none.")

    async def roll_back(self, name: str, alias: str) -> Alias:
        raise ModelNotFound(f"There is no model {name!r} in the store; there are: none.")

    async def delete_alias(self, name: str, alias: str) -> None:
        raise ModelNotFound(f"There is no model {name!r} in the store; there are: none.")
