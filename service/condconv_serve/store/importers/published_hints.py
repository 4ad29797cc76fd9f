"""Guesses which registered network weights are of whose names are published ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from condconv_serve.errors import ConfigurationError
from condconv_serve.nn import ARCHITECTURES, family_of, weight_shapes
from condconv_serve.nn.published import Published
from condconv_serve.nn.spec import NetworkSpec
from condconv_serve.nn.ssd import SSDSpec
from condconv_serve.store.importers.published import split_name, translate_published

_ROUTER = "_routing"
_WIDTHS = (0.25, 0.35, 0.5, 0.75, 1.25, 1.3, 1.4, 1.5, 2.0, 0.125)
_DEPTHS = (0.5, 1.1, 1.2, 1.4, 1.5, 1.8, 2.0, 2.2)

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """A network that weights fit: what is registered, how it differs, and as a whole."""

    registered: NetworkSpec
    options: tuple[str, ...]
    architecture: NetworkSpec

    @property
    def arguments(self) -> str:
        """What to write on the command line."""
        return " ".join((f"--architecture {self.registered.name}", *self.options))


def guess(tensors: Tensors, asked: Any) -> Guess | None:
    """The registered network, in any size, that fits; with the fewest changes, and the one asked for first."""
    registered = [one for one in ARCHITECTURES.values() if isinstance(one, NetworkSpec)]
    registered.sort(key=lambda one: one.name != asked.name)
    found = [
        fit
        for architecture in registered
        for way in family_of(architecture).published
        if (fit := _fit(tensors, way, architecture)) is not None
    ]
    return min(found, key=lambda one: len(one.options), default=None)


def guess_detector(tensors: Tensors, asked: Any, *, upcycling: bool) -> str | None:
    """What weights of a detector are, by the names of its layers, as the end of a sentence; None if they are none."""
    fitting = [spec for spec in ARCHITECTURES.values() if isinstance(spec, SSDSpec) and _has_names(spec, tensors)]
    if not fitting or any(spec.name == asked.name for spec in fitting):
        return None  # they are none, or of the one asked for, so something else is wrong
    if not isinstance(asked, SSDSpec) or not _has_names(asked.static(), tensors):
        return f"they look like --architecture {fitting[0].name}"
    return (
        None if upcycling else f"they are those of its static twin {fitting[0].name}: --upcycle makes experts of them"
    )


def _has_names(spec: SSDSpec, tensors: Tensors) -> bool:
    """Whether weights name all layers of a static detector, but for norms that may be folded, and no others."""
    if spec.num_experts:
        return False
    for way in family_of(spec).published:
        layers = way.layers(spec)
        given = {split_name(name, way.layout)[0] for name in tensors}
        if (
            given
            and {theirs for theirs, ours in layers.items() if not ours.endswith("_norm")} <= given <= layers.keys()
        ):
            return True
    return False


def _fit(tensors: Tensors, way: Published, registered: NetworkSpec) -> Guess | None:
    given = {split_name(name, way.layout)[0] for name in tensors}
    for spec in _in_depth(registered.static(), given, way):
        layers = way.layers(spec)
        routers = [theirs for theirs, ours in layers.items() if ours.endswith(_ROUTER) and theirs in given]
        shapes = [tensors[name].shape for name in tensors if split_name(name, way.layout)[0] in routers[:1]]
        experts = min((shape[0] for shape in shapes if len(shape) == 1), default=0)
        try:
            if experts:
                parts = [layers[router].removesuffix(_ROUTER) for router in routers]
                spec = spec.changed(num_experts=experts, condconv=parts)
            found = next((wide for wide in _in_width(spec) if _fits(tensors, way, wide)), None)
        except ConfigurationError:  # no such network
            continue
        if found is not None:
            return Guess(registered=registered, options=_options(found, registered), architecture=found)
    return None


def _in_depth(spec: NetworkSpec, given: set[str], way: Published) -> Iterator[NetworkSpec]:
    """The depths in which a network has exactly the layers that are given, but for routers and excitations."""
    depths = (1.0, *_DEPTHS) if "depth_coefficient" in spec.OVERRIDABLE else (spec.depth_coefficient,)
    for depth in depths:
        deep = spec if depth == spec.depth_coefficient else spec.changed(depth_coefficient=depth)
        layers = way.layers(deep)
        needed = {theirs for theirs, ours in layers.items() if not ours.endswith(_ROUTER) and "_se_" not in ours}
        if needed <= given <= layers.keys():
            yield deep


def _in_width(spec: NetworkSpec) -> Iterator[NetworkSpec]:
    yield spec
    for width in _WIDTHS:
        yield spec.changed(width_coefficient=width)


def _fits(tensors: Tensors, way: Published, spec: NetworkSpec) -> bool:
    stem = next(iter(way.layers(spec)))
    kernels = [value for name, value in tensors.items() if split_name(name, way.layout)[0] == stem and value.ndim == 4]
    if len(kernels) != 1 or kernels[0].shape[0 if way.layout == "pytorch" else -1] != spec.stem_filters:  # type: ignore[attr-defined]
        return False
    changes = {key: value for key, value in way.conventions.items() if key in spec.OVERRIDABLE}
    expected = weight_shapes(spec.changed(**changes))
    translation = translate_published(tensors, way, spec, expected)
    shapes = {tensor.path: tuple(tensor.value.shape) for tensor in translation.tensors}
    return not translation.unknown and _body(shapes) == _body(expected)


def _body(shapes: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    return {path: shape for path, shape in shapes.items() if not path.startswith("logits/")}


def _options(found: NetworkSpec, registered: NetworkSpec) -> tuple[str, ...]:
    """What differs from what is registered, as options."""
    options = []
    if found.num_experts not in (0, registered.num_experts):
        options.append(f"--experts {found.num_experts}")
    for key in ("width_coefficient", "depth_coefficient"):
        if getattr(found, key) != getattr(registered, key):
            options.append(f"--override {key}={getattr(found, key):g}")
    usual = (
        registered.changed(depth_coefficient=found.depth_coefficient) if found.depth_coefficient != 1 else registered
    )
    if found.condconv != usual.condconv:
        options.append(f"--override condconv={','.join(found.condconv) or 'none'}")
    return tuple(options)
