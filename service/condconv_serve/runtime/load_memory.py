"""How much memory loading a bundle takes, judged by its sizes before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from condconv_serve.runtime.plan import EnginePlan
from condconv_serve.store import Bundle, count_weights

IMPORT_BYTES = 170 * 2**20
"""What importing TensorFlow takes, without its code, which the system may drop and read again."""

_ROW_IMAGE_SIZE = 224
"""Pixels per side of the images of which rows were measured."""


@dataclass(frozen=True, slots=True)
class _LoadCost:
    """Bytes that a load needs: so many in any case, and so many times the weights in float32.

    Measured with networks of 1 to 40 million parameters, and then taken some percent lower: refusing a version that
    fits is the worse mistake of the two where nobody looks. docs/performance.md has the figures.

    Attributes:
        fixed: in any case.
        times_weights: at the peak.
        served: what is left of them when the load has ended.
        row: each row that may be computed at the same time. On accelerators this is their memory.
    """

    fixed: int
    times_weights: float
    served: float = 4.0
    row: int = 4 * 2**20


# Many copies of the weights exist at once while a graph is built, folded and optimised.
_TENSORFLOW = _LoadCost(fixed=40 * 2**20, times_weights=12.0)
_OPENVINO = _LoadCost(fixed=80 * 2**20, times_weights=14.5)
_ABLATION = _LoadCost(fixed=40 * 2**20, times_weights=7.0)
# Banks are packed layer by layer, and what TensorFlow computes for comparison needs no graph.
_NATIVE = _LoadCost(fixed=60 * 2**20, times_weights=2.95, served=1.0, row=2**20)
_NATIVE_ABLATION = _LoadCost(fixed=25 * 2**20, times_weights=2.75)


def load_bytes(bundle: Bundle, plan: EnginePlan) -> int:
    """The memory that loading and warming up a bundle will take at its peak, in bytes; a rather low estimate.

    Raises:
        BundleError: the weights can't be read.
    """
    weights = _weight_bytes(bundle)
    cost = _NATIVE if plan.native != "off" else _OPENVINO if plan.engine == "openvino" else _TENSORFLOW
    rows = plan.streams * plan.max_batch_size if plan.device == "cpu" else 0
    scale = (bundle.manifest.preprocessing.image_size / _ROW_IMAGE_SIZE) ** 2
    loading = cost.times_weights * weights
    warming_up = cost.served * weights + rows * scale * cost.row
    return cost.fixed + round(max(loading, warming_up))


def ablation_bytes(bundle: Bundle, plan: EnginePlan) -> int:
    """The same for making a bundle ready for ablations.

    Raises:
        BundleError: the weights can't be read.
    """
    cost = _ABLATION if plan.native == "off" else _NATIVE_ABLATION
    return cost.fixed + round(cost.times_weights * _weight_bytes(bundle))


def _weight_bytes(bundle: Bundle) -> int:
    return count_weights(bundle) * 4  # float32, whatever they are stored as
