"""A model in one's own process answers as a server does: the same numbers, in values of the same types."""

import numpy as np
import pytest

import condconv_serve as cc
from condconv_serve.samples import SAMPLES
from condconv_serve.settings import Settings
from tests.e2e.server import BUNDLE

NOT_EQUAL = {"timings", "batch_size", "request_id"}


@pytest.fixture(scope="module")
def model():
    with pytest.MonkeyPatch.context() as patched:
        for name in Settings.model_fields:
            patched.delenv(f"CONDCONV_{name.upper()}", raising=False)
        with cc.load(BUNDLE) as loaded:
            yield loaded


@pytest.fixture
def client(real_server):
    with cc.Client(real_server.url, api_key="") as client:
        yield client


def same(ours, theirs):
    """The results of both are of one type, and alike in all that doesn't change from time to time."""
    assert type(ours) is type(theirs)
    assert vars(ours).keys() == vars(theirs).keys()
    for name in vars(ours).keys() - NOT_EQUAL:
        one, other = getattr(ours, name), getattr(theirs, name)
        assert type(one) is type(other), name
        if name == "classes":
            assert [scored.index for scored in one] == [scored.index for scored in other]
            assert [scored.label for scored in one] == [scored.label for scored in other]
            probabilities = [[scored.probability for scored in classes] for classes in (one, other)]
            assert np.abs(np.subtract(*probabilities)).max(initial=0) < 1e-6
        elif name == "routing" and one is not None:
            assert one.layout == other.layout
            assert one.weights.dtype == other.weights.dtype == np.float32
            assert np.abs(one.weights - other.weights).max() < 1e-6
        elif name in ("features", "logits") and one is not None:
            assert one.dtype == other.dtype == np.float32
            assert np.abs(one - other).max() < 1e-6 * np.abs(other).max()
        elif name == "insight" and one is not None:
            assert [block.strongest for block in one.blocks] == [block.strongest for block in other.blocks]
            assert one.reference_distance == pytest.approx(other.reference_distance, abs=1e-6)
            assert (one.unusual, one.reference_images) == (other.unusual, other.reference_images)
        elif name == "error" and one is not None:
            assert (one.slug, str(one)) == (other.slug, str(other))
        else:
            assert one == other, name
    for result in (ours, theirs):
        assert (result.timings is None) == (result.batch_size is None) == (not result.ok)
    if ours.ok:
        assert type(ours.timings) is type(theirs.timings)


def test_predict(model, client):
    images = [*SAMPLES, b"no image"]
    for ours, theirs in zip(
        model.predict(images, top_k=1000), client.predict(images, top_k=1000, routing=True), strict=True
    ):
        same(ours, theirs)
    same(model.predict(SAMPLES[0], threshold=0.1), client.predict(SAMPLES[0], threshold=0.1, routing=True))


def test_routing(model, client):
    for ours, theirs in zip(model.routing(SAMPLES), client.routing(SAMPLES), strict=True):
        same(ours, theirs)


def test_features(model, client):
    images = [*SAMPLES, b"no image"]
    for ours, theirs in zip(model.features(images, logits=True), client.features(images, logits=True), strict=True):
        same(ours, theirs)


def test_one_bad_image(model, client):
    errors = []
    for ask in (model.predict, client.predict):
        with pytest.raises(cc.ServiceError) as raised:
            ask(b"no image")
        errors.append((type(raised.value), str(raised.value)))
    assert errors[0] == errors[1]
