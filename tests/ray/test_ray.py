"""The service on a Ray cluster of two nodes, with its real network: the same answers, whatever happens to replicas."""

from __future__ import annotations

from base64 import b64encode

import numpy as np
import pytest

import condconv_serve
from tests.ray.house import NAME, PHOTOS, House

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def plain(house: House):
    """Each photo's best class without Ray."""
    with condconv_serve.load(house.store / NAME / "1") as model:
        answers = model.predict(list(PHOTOS.values()))
    return {name: answer.classes[0] for name, answer in zip(PHOTOS, answers, strict=True)}


@pytest.fixture(scope="module", autouse=True)
def _deployed(house: House):
    """One replica at the start, and a second one while there is any load."""
    house.deploy(
        autoscaling={
            "min_replicas": 1,
            "max_replicas": 2,
            "target_rows": 0.4,
            "upscale_delay_s": 1,
            "downscale_delay_s": 15,
            "look_back_period_s": 3,
        }
    )


def test_answers_are_the_same_as_without_ray(house: House, plain):
    for name, best in plain.items():
        answer = house.predict(name, params={"routing": "true"}, headers={"X-Request-Id": f"one-{name}"})
        assert answer.status_code == 200, answer.text
        assert answer.headers.get_list("X-Request-Id") == [f"one-{name}"]
        (found,) = answer.json()["predictions"]
        assert found["classes"][0]["index"] == best.index
        assert found["classes"][0]["probability"] == pytest.approx(best.probability, abs=1e-4)
        assert len(found["routing"]) > 0


def test_other_fronts_answer_too(house: House, plain):
    name, best = next(iter(plain.items()))
    text = b64encode(PHOTOS[name]).decode()
    tensorflow = house.client.post(f"/v1/models/{NAME}:predict", json={"instances": [{"image": {"b64": text}}]})
    assert tensorflow.status_code == 200, tensorflow.text
    assert int(np.argmax(tensorflow.json()["predictions"][0]["probabilities"])) == best.index
    oip = house.client.post(
        f"/v2/models/{NAME}/infer",
        json={"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]}]},
    )
    assert oip.status_code == 200, oip.text


def test_errors_are_the_same_as_without_ray(house: House):
    assert house.client.post("/predict", content=b"no image").json()["slug"] == "unsupported_image"
    assert house.predict(params={"model": "nobody"}).status_code == 404
    assert house.predict(params={"top_k": 0}).status_code == 422
    late = house.predict(params={"timeout_ms": 1})
    assert late.status_code in (429, 504), late.text


def check(traffic, plain, *, versions=("1",)):
    """Everybody was answered, each photo with its own class."""
    assert traffic.failures == []
    assert {version for _, version, _ in traffic.answers} <= set(versions)
    assert {(photo, best) for photo, _, best in traffic.answers} == {(name, best.index) for name, best in plain.items()}


def test_replicas_follow_the_load_and_no_request_is_lost(house: House, plain):
    assert house.running() == 1
    with house.traffic() as busy:
        house.until(lambda: house.running() == 2, seconds=90)
        assert len(set(house.processes().values())) == 2  # one on each node
        busy.until_more(50)
    with house.traffic(threads=1, pause=1.0) as calm:
        house.until(lambda: house.running() == 1 and len(house.processes()) == 1, seconds=90)
        calm.until_more(3)
    check(busy, plain)
    check(calm, plain)


def test_nobody_notices_that_a_replica_is_killed(house: House, plain):
    with house.traffic() as traffic:
        before = house.until(lambda: house.running() == 2 and house.processes(), seconds=90)
        traffic.until_more(20)
        house.kill(next(iter(before)))
        traffic.until_more(50)
        house.until(lambda: house.running() == 2 and len(house.processes()) == 2, seconds=90)
        assert house.processes() != before
        traffic.until_more(20)
    check(traffic, plain)


def test_nobody_notices_that_a_new_version_comes(house: House, plain):
    with house.traffic() as traffic:
        house.until(lambda: house.running() == 2, seconds=90)
        house.add_version(2)
        house.until(lambda: traffic.last_version == "2")
        traffic.until_more(50)
        assert traffic.last_version == "2"
    check(traffic, plain, versions=("1", "2"))


def test_nobody_notices_that_a_node_is_killed(house: House, plain):
    with house.traffic() as traffic:
        house.until(lambda: len(set(house.processes().values())) == 2 and house.running() == 2, seconds=90)
        traffic.until_more(20)
        house.kill_node(house.second_node)
        traffic.until_more(50)
        house.second_node = house.add_node()
        house.until(lambda: len(set(house.processes().values())) == 2, seconds=120)
        traffic.until_more(20)
    check(traffic, plain, versions=("2",))
