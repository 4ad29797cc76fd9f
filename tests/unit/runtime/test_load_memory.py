from dataclasses import replace

import numpy as np
import pytest

from condconv_serve.domain import NativeUse
from condconv_serve.domain.manifest import PreprocessingSpec
from condconv_serve.errors import BundleError
from condconv_serve.runtime.load_memory import ablation_bytes, load_bytes
from condconv_serve.store import count_weights, open_bundle, write_bundle
from tests.unit.store.samples import DEFAULT, PLAN, new_bundle

NATIVE = replace(PLAN, native="auto", native_use=NativeUse(state="used", reason="they can be used here", isa="avx2"))
MEASURED = {
    "tensorflow": (replace(PLAN, max_batch_size=4), (659, 668)),
    "openvino": (replace(PLAN, engine="openvino", max_batch_size=4), (814, 943)),
    "native": (replace(NATIVE, max_batch_size=8), (236, 240)),
}
"""MiB that loading the model that ships with the server took at its peak, by two streams."""


def bundle_of(store, *, weights=1000, dtype=np.float32, image_size=64, **changes):
    preprocessing = PreprocessingSpec(transform="pillow", image_size=image_size, mean=(127,) * 3, std=(128,) * 3)
    return open_bundle(
        write_bundle(store, new_bundle(weights={"a": np.zeros(weights, dtype)}, preprocessing=preprocessing, **changes))
    )


@pytest.mark.parametrize(("plan", "measured"), [(PLAN, 415), (NATIVE, 178)], ids=["tensorflow", "native"])
def test_ablations_need_less(plan, measured):
    assert 0.8 * measured < ablation_bytes(open_bundle(DEFAULT), plan) / 2**20 < measured


@pytest.mark.parametrize(("plan", "measured"), MEASURED.values(), ids=MEASURED)
def test_the_estimate_is_near_what_was_measured_and_not_above(plan, measured):
    least, most = measured
    assert 0.8 * most < load_bytes(open_bundle(DEFAULT), replace(plan, streams=2)) / 2**20 < least


def test_weights_count_as_what_they_are_computed_with(tmp_path):
    sizes = [
        load_bytes(bundle_of(tmp_path, weights=10**6, dtype=dtype, version=version), PLAN)
        for dtype, version in ((np.float32, "1"), (np.float16, "2"))
    ]
    assert sizes[0] == sizes[1] > 40e6


@pytest.mark.parametrize(
    "plan", [replace(PLAN, max_batch_size=64), replace(PLAN, streams=64)], ids=["batches", "streams"]
)
def test_large_batches_count(plan, tmp_path):
    small, large = bundle_of(tmp_path), bundle_of(tmp_path, image_size=448, version="2")
    assert load_bytes(small, plan) > load_bytes(small, PLAN)
    assert load_bytes(large, plan) > 64 * 4 * 2**20 * 4


def test_batches_on_an_accelerator_take_no_memory_of_the_machine(tmp_path):
    plan = replace(PLAN, device="gpu")
    bundle = bundle_of(tmp_path)
    assert load_bytes(bundle, replace(plan, max_batch_size=128)) == load_bytes(bundle, plan)


def test_weights_are_counted_without_being_read(tmp_path):
    bundle = open_bundle(DEFAULT)
    assert count_weights(bundle) == 12_719_592
    path = write_bundle(tmp_path, new_bundle())
    broken = open_bundle(path)
    (path / "weights.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(BundleError, match=r"small/1: weights\.safetensors can't be read"):
        count_weights(broken)
