import numpy as np
import pytest

from condconv_serve.errors import ImportFailed
from condconv_serve.nn import build_network, get_architecture, outline
from condconv_serve.store.importers import assemble, translate_timm
from tests.parity.seeded import read_tiny
from tests.unit.store.importers.naming import pytorch_layout, timm_name

pytestmark = pytest.mark.tensorflow

OVERRIDE = read_tiny()[0]["override"]
LITE, CONDCONV = "efficientnet-lite0-condconv-4e", "efficientnet-condconv-b0-4e"


@pytest.fixture(scope="module", params=[CONDCONV, LITE, "efficientnet-b0"])
def network(request):
    """Name, values by our path, and the state dict that timm would have for them."""
    model = outline(lambda: build_network(get_architecture(request.param, **OVERRIDE)))
    rng = np.random.default_rng(0)
    values = {w.path: rng.standard_normal(w.shape).astype(np.float32) for w in model.weights}
    state = {timm_name(path): pytorch_layout(path, value) for path, value in values.items()}
    counters = {f"{name.rpartition('.')[0]}.num_batches_tracked": np.int64(9) for name in state if "running_" in name}
    return request.param, values, state | counters


def shapes_of(values):
    return {path: value.shape for path, value in values.items()}


def test_values_land_in_their_places(network):
    name, values, state = network
    assert len(state) > len(values)  # each norm has a counter that we don't need
    found = assemble(translate_timm(state, shapes_of(values)), shapes_of(values), architecture=name)
    assert found.keys() == values.keys()
    for path, value in values.items():
        np.testing.assert_array_equal(found[path], value, path)


@pytest.fixture(scope="module")
def condconv():
    model = outline(lambda: build_network(get_architecture(CONDCONV, **OVERRIDE)))
    values = {w.path: np.ones(w.shape, np.float32) for w in model.weights}
    return shapes_of(values), {timm_name(path): pytorch_layout(path, value) for path, value in values.items()}


ROUTER, EXPERTS = "blocks.4.1.routing_fn.weight", "blocks.4.1.conv_pwl.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({ROUTER: None}, "missing: block_9_routing/kernel."),
        ({"blocks.4.1.attn.weight": np.zeros(3)}, "left over: blocks.4.1.attn.weight."),
        ({"blocks.4.1.bn1.scale": np.zeros(3)}, "left over: blocks.4.1.bn1.scale."),
        ({"pre_logits.weight": np.zeros(3)}, "left over: pre_logits.weight."),
        ({ROUTER: np.zeros((8, 32))}, f"misshaped: {ROUTER} is [32, 8], but block_9_routing/kernel is [32, 4]."),
        (
            {EXPERTS: np.zeros((4, 6143))},
            f"misshaped: {EXPERTS} is [4, 6143], but block_9_project/kernel is [4, 1, 1, 192, 32].",
        ),
        (
            {EXPERTS: np.zeros((8, 3072))},
            f"misshaped: {EXPERTS} is [8, 3072], but block_9_project/kernel is [4, 1, 1, 192, 32].",
        ),
        ({EXPERTS: np.full((4, 6144), np.inf)}, f"not finite: {EXPERTS}."),
    ],
)
def test_misfits_are_named(change, says, condconv):
    shapes, state = condconv
    changed = {name: value for name, value in (state | change).items() if value is not None}
    with pytest.raises(ImportFailed) as caught:
        assemble(translate_timm(changed, shapes), shapes, architecture=CONDCONV)
    assert str(caught.value) == f"The weights don't fit {CONDCONV}: {says}"


def test_another_kind_of_network_is_refused(condconv):
    with pytest.raises(ImportFailed, match=r"no tensor called blocks\.0\.0"):
        translate_timm({"layer1.0.conv1.weight": np.zeros((64, 64, 3, 3))}, condconv[0])
