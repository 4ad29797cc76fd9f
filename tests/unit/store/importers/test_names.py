"""What stands before names, and which copy of a network is taken; no tensors are needed."""

import pytest

from condconv_serve.errors import ImportFailed
from condconv_serve.store.importers.names import plain_copy, uncommon_prefix

pytestmark = pytest.mark.tensorflow

OWN = ["conv_stem.weight", "bn1.bias", "blocks.0.0.bn1.weight", "blocks.0.0.se.conv_reduce.bias", "classifier.bias"]


def taken(*prefixes, more=(), use_ema=True):
    """The copy that is taken of a network that is there under these prefixes; values are the prefixes."""
    state = {f"{prefix}{name}": prefix for prefix in prefixes for name in OWN}
    return plain_copy(state | dict.fromkeys(more, ""), use_ema=use_ema, source="w.pth")


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "module.module.",
        "model.",
        "backbone.",
        "net.encoder.",
        "timm_model.",
        "classifier.",
        "model.module._orig_mod.backbone.",
        "_fsdp_wrapped_module.model.",
    ],
)
def test_common_prefixes_are_taken_off(prefix):
    copy = taken(prefix)
    assert list(copy.weights) == OWN
    assert (copy.kind, copy.has_other) == ("unmarked", False)


def test_wrappers_inside_of_names():
    copy = plain_copy(
        {"model.blocks._orig_mod.0.module.0.bn1.weight": 1, "model.bn1.bias": 2}, use_ema=True, source="w"
    )
    assert list(copy.weights) == ["blocks.0.0.bn1.weight", "bn1.bias"]


def test_a_prefix_that_not_all_have_stays():
    copy = taken("model.", more=["fc.weight"])
    assert next(iter(copy.weights)) == "model.conv_stem.weight"
    assert uncommon_prefix(copy.weights) == (
        " Most names begin with model., but not fc.weight; only a prefix that all names have is taken off."
    )
    assert uncommon_prefix(OWN) == ""
    assert len(taken("", "module.").weights) == 2 * len(OWN), "two would have the same name"


@pytest.mark.parametrize(("raw", "averaged"), [("model.", "model_ema.module."), ("", "ema."), ("net.", "net_swa.")])
@pytest.mark.parametrize("use_ema", [True, False])
def test_a_second_copy_of_averages(raw, averaged, use_ema):
    copy = taken(raw, averaged, use_ema=use_ema)
    assert list(copy.weights) == OWN
    assert set(copy.weights.values()) == {averaged if use_ema else raw}
    assert (copy.kind, copy.has_other) == ("averaged" if use_ema else "raw", True)


def test_nothing_but_averages():
    for copy in (taken("module.", more=["n_averaged"]), taken("model_ema.")):
        assert (list(copy.weights), copy.kind, copy.has_other) == (OWN, "averaged", False)
    with pytest.raises(ImportFailed, match=r"^w\.pth holds averaged weights only, and these are refused\.$"):
        taken("model_ema.", use_ema=False)
