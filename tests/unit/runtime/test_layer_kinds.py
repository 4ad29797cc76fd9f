from typing import Any

import pytest
from keras import layers

from condconv_serve.nn import CondConv2D, CondConvDense, DepthwiseCondConv2D
from condconv_serve.runtime.layer_kinds import LayerKind, Role, has_role, is_condconv, is_pointwise, kind_of

pytestmark = pytest.mark.tensorflow


class DerivedCondConv2D(CondConv2D):
    """May compute something else, but is routed all the same."""


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (layers.Conv2D(4, 3), LayerKind(Role.CONVOLUTION)),
        (layers.DepthwiseConv2D(3), LayerKind(Role.CONVOLUTION, depthwise=True)),
        (CondConv2D(4, 3, 2), LayerKind(Role.CONVOLUTION, experts=True)),
        (DepthwiseCondConv2D(3, 2), LayerKind(Role.CONVOLUTION, depthwise=True, experts=True)),
        (CondConvDense(4, 2), LayerKind(Role.DENSE, experts=True)),
        (layers.BatchNormalization(), LayerKind(Role.NORM)),
        (layers.Multiply(), LayerKind(Role.STATELESS)),
        (layers.Conv2D(4, 3, data_format="channels_first"), None),
        (layers.LayerNormalization(), None),
        (DerivedCondConv2D(4, 3, 2), None),
        (None, None),
    ],
)
def test_kinds(layer: Any, kind: LayerKind | None) -> None:
    assert kind_of(layer) == kind
    assert [role for role in Role if has_role(layer, role)] == ([] if kind is None else [kind.role])


@pytest.mark.parametrize(
    ("layer", "pointwise"),
    [
        (layers.Conv2D(4, 1), True),
        (CondConv2D(4, 1, 2), True),
        (CondConv2D(4, 1, 2, strides=2), False),
        (CondConv2D(4, (1, 3), 2), False),
        (layers.Conv2D(4, 1, groups=2), False),
        (layers.DepthwiseConv2D(1), False),
        (layers.Dense(4), False),
    ],
)
def test_pointwise_convolutions(layer: Any, pointwise: bool) -> None:
    assert is_pointwise(layer) is pointwise


def test_what_is_routed() -> None:
    routed = (CondConv2D(4, 3, 2), DepthwiseCondConv2D(3, 2), CondConvDense(4, 2), DerivedCondConv2D(4, 3, 2))
    assert all(map(is_condconv, routed))
    assert not is_condconv(layers.Conv2D(4, 3))
