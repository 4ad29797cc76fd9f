"""A model in one's own process answers as a server does: the same numbers, in values of the same types."""

from dataclasses import astuple

import numpy as np
import pytest

import condconv_serve as cc
from condconv_serve.samples import SAMPLES
from condconv_serve.settings import Settings
from tests.contract.fake_server import load_fake
from tests.e2e.server import BUNDLE, Server
from tests.e2e.tiny_models import write_colour_detector
from tests.pictures import jpeg, oriented

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
        elif name == "objects":
            assert [(found.index, found.label, found.synset) for found in one] == [
                (found.index, found.label, found.synset) for found in other
            ]
            for found, again in zip(one, other, strict=True):
                assert found.score == pytest.approx(again.score, abs=1e-6)
                assert astuple(found.box) == pytest.approx(astuple(again.box), abs=1e-3)
                assert astuple(found.box_normalized) == pytest.approx(astuple(again.box_normalized), abs=1e-6)
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


def test_detect(tmp_path):
    """With a network that is a stand-in: what differs between the two is around it."""
    write_colour_detector(tmp_path)
    photo = np.full((60, 200, 3), 128, np.uint8)
    photo[10:30, 20:80], photo[30:50, 120:190] = (255, 0, 0), (0, 0, 255)
    images = [photo, oriented(photo, 6, "PNG"), jpeg(photo), b"no image"]
    settings = Settings(native="off", engine="tensorflow", streams=1)
    with (
        Server(model_store=tmp_path) as server,
        cc.Client(server.url, api_key="") as client,
        cc.Model(tmp_path / "colours" / "1", settings, load=load_fake) as model,
    ):
        options = {"score_threshold": 0.2, "iou_threshold": 0.3, "max_detections": 7}
        ours, theirs = model.detect(images, **options), client.detect(images, routing=True, **options)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
        assert [len(result.objects) for result in ours] == [7, 7, 7, 0]


def test_one_bad_image(model, client):
    errors = []
    for ask in (model.predict, client.predict):
        with pytest.raises(cc.ServiceError) as raised:
            ask(b"no image")
        errors.append((type(raised.value), str(raised.value)))
    assert errors[0] == errors[1]
