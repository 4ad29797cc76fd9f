"""How much memory loading a bundle takes, judged by its sizes before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from condconv_serve.runtime.plan import EngineName, EnginePlan
from condconv_serve.store import Bundle, count_weights

IMPORT_BYTES = 170 * 2**20
"""What importing TensorFlow takes, without its code, which the system may drop and read again."""

_ROW_BYTES = 4 * 2**20
_ROW_IMAGE_SIZE = 224
"""Each row that may be computed at the same time takes so much at that size. On accelerators this is their memory."""


@dataclass(frozen=True, slots=True)
class _LoadCost:
    """Bytes that a load needs at its peak: so many in any case, and so many times the weights in float32.

    Measured with networks of 1 to 40 million parameters, and then taken some percent lower: refusing a version that
    fits is the worse mistake of the two where nobody looks. docs/performance.md has the figures.
    """

    fixed: int
    times_weights: float


_LOAD_COSTS: dict[EngineName, _LoadCost] = {
    # Many copies of the weights exist at once while a graph is built, folded and optimised.
    "tensorflow": _LoadCost(fixed=40 * 2**20, times_weights=12.0),
    "openvino": _LoadCost(fixed=80 * 2**20, times_weights=14.5),
}
_ABLATION_COST = _LoadCost(fixed=40 * 2**20, times_weights=7.0)
_SERVED_TIMES_WEIGHTS = 4.0
"""What is left of them when the load has ended, as a multiple of the weights."""


def load_bytes(bundle: Bundle, plan: EnginePlan) -> int:
    """The memory that loading and warming up a bundle will take at its peak, in bytes; a rather low estimate.

    Raises:
        BundleError: the weights can't be read.
    """
    cost, weights = _LOAD_COSTS[plan.engine], _weight_bytes(bundle)
    rows = plan.streams * plan.max_batch_size if plan.device == "cpu" else 0
    scale = (bundle.manifest.preprocessing.image_size / _ROW_IMAGE_SIZE) ** 2
    loading = cost.times_weights * weights
    warming_up = _SERVED_TIMES_WEIGHTS * weights + rows * scale * _ROW_BYTES
    return cost.fixed + round(max(loading, warming_up))


def ablation_bytes(bundle: Bundle) -> int:
    """The same for making a bundle ready for ablations.

    Raises:
        BundleError: the weights can't be read.
    """
    return _ABLATION_COST.fixed + round(_ABLATION_COST.times_weights * _weight_bytes(bundle))


def _weight_bytes(bundle: Bundle) -> int:
    return count_weights(bundle) * 4  # float32, whatever they are stored as
