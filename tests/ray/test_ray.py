"""The service on a Ray cluster of two nodes, with its real network: the same answers, whatever happens to replicas."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from typing import Any

import grpc
import numpy as np
import pytest

import condconv_serve
from condconv_serve.fronts.oip.datatypes import joined
from condconv_serve.fronts.oip.grpc import NAME as OIP
from condconv_serve.fronts.oip.grpc_messages import REQUEST, RESPONSE
from tests.contract.collector import Collector, attributes
from tests.ray.house import NAME, PHOTOS, House

pytestmark = pytest.mark.ray
START = 240
"""Seconds that a replica may take to start, on a machine that others use, too."""


@pytest.fixture(scope="module")
def plain(house: House):
    """Each photo's best class without Ray."""
    with condconv_serve.load(house.store / NAME / "1") as model:
        answers = model.predict(list(PHOTOS.values()))
    return {name: answer.classes[0] for name, answer in zip(PHOTOS, answers, strict=True)}


@pytest.fixture(scope="module")
def collector():
    """What all replicas export their spans to."""
    with Collector() as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def _deployed(house: House, collector):
    """One replica at the start, and a second one while there is any load."""
    house.deploy(
        settings={
            "api_keys_file": house.write_keys(),
            "grpc_port": house.grpc_port,
            "otlp_endpoint": collector.url,
        },
        autoscaling={
            "min_replicas": 1,
            "max_replicas": 2,
            "target_rows": 0.4,
            "upscale_delay_s": 1,
            "downscale_delay_s": 15,
            "look_back_period_s": 3,
        },
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


def test_grpc_answers_on_a_port_of_its_own(house: House, plain):
    name, best = next(iter(plain.items()))
    asked = REQUEST(model_name=NAME, raw_input_contents=[joined([PHOTOS[name]])])
    asked.inputs.add(name="image", datatype="BYTES", shape=[1])
    asked.outputs.add(name="logits")
    with grpc.insecure_channel(f"127.0.0.1:{house.grpc_port}") as channel:
        ask: Any = channel.unary_unary(f"/{OIP}/ModelInfer")
        answer = ask(asked.SerializeToString(), metadata=(("x-api-key", house.admin_key),), timeout=30)
    logits = np.frombuffer(RESPONSE.FromString(answer).raw_output_contents[0], np.float32)
    assert int(logits.argmax()) == best.index


def test_errors_are_the_same_as_without_ray(house: House):
    assert house.client.post("/predict", content=b"no image").json()["slug"] == "unsupported_image"
    assert house.predict(params={"model": "nobody"}).status_code == 404
    assert house.predict(params={"top_k": 0}).status_code == 422
    late = house.predict(params={"timeout_ms": 1})
    assert late.status_code in (429, 504), late.text


def test_spans_of_ingress_and_model_replica_are_in_one_trace(house: House, collector):
    trace, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    answer = house.predict(headers={"traceparent": f"00-{trace}-{caller}-01", "X-Request-Id": "traced"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["traceresponse"].split("-")[1] == trace

    def found():
        spans = {span.name: span for span in collector.all_spans() if span.trace_id.hex() == trace}
        return spans if len(spans) >= 5 else None

    spans = house.until(found, seconds=60)
    whole, replica = spans["POST /predict"], spans["replica"]
    assert whole.parent_span_id.hex() == caller
    assert spans["decode"].parent_span_id == replica.parent_span_id == whole.span_id
    assert spans["queue"].parent_span_id == spans["inference"].parent_span_id == replica.span_id
    assert attributes(replica)["condconv.request_id"] == "traced"
    assert attributes(replica)["condconv.replica"]


def test_keys_are_needed_and_their_limits_hold(house: House):
    nobody = house.client.post("/predict", content=b"", headers={"X-API-Key": "wrong"})
    assert (nobody.status_code, nobody.json()["slug"]) == (401, "unauthenticated")
    limited = [house.predict(headers={"X-API-Key": house.limited_key}) for _ in range(4)]
    assert [answer.status_code for answer in limited] == [200, 200, 200, 429]
    assert limited[-1].json()["slug"] == "rate_limited"
    assert 0 < int(limited[-1].headers["Retry-After"]) <= 60


def test_recent_requests_statistics_and_ablations_are_there(house: House, plain):
    name, best = next(iter(plain.items()))
    answer = house.client.post("/routing", content=PHOTOS[name], headers={"X-Request-Id": "kept"})
    assert answer.status_code == 200, answer.text
    kept = house.until(lambda: (found := house.client.get("/routing/kept")).status_code == 200 and found.json())
    assert kept["predictions"][0]["classes"][0]["index"] == best.index
    statistics = house.client.get(f"/v2/models/{NAME}/stats").json()["model_stats"][0]
    assert statistics["inference_stats"]["success"]["count"] > 0
    ablated = house.client.post("/routing/ablation", params={"blocks": "block_15"}, content=PHOTOS[name], timeout=120)
    assert ablated.status_code == 200, ablated.text
    assert len(ablated.json()["variants"]) == 5  # without each expert, and all alike


def test_an_admin_points_an_alias(house: House):
    assert '"state":"serving"' in house.client.get(f"/models/{NAME}").text
    pointed = house.client.put(f"/models/{NAME}/aliases/stable", json={"versions": {"1": 1}})
    assert pointed.status_code == 200, pointed.text
    answer = house.until(lambda: (found := house.predict(params={"version": "stable"})).status_code == 200 and found)
    assert answer.json()["model"]["version"] == "1"
    assert house.client.delete(f"/models/{NAME}/aliases/stable").status_code in (200, 204)


def test_metrics_are_in_the_exporters_of_ray_by_replica(house: House):
    name = "ray_condconv_rows_total"

    def answered():
        found = house.exported(name, 'outcome="answered"')
        return found if found and max(found.values()) > 0 else None

    for labels in house.until(answered, seconds=60):
        assert 'replica="' in labels
        assert f'model="{NAME}"' in labels


def check(traffic, plain, *, versions=("1",)):
    """Everybody was answered, each photo with its own class."""
    assert traffic.failures == []
    assert {version for _, version, _ in traffic.answers} <= set(versions)
    assert {(photo, best) for photo, _, best in traffic.answers} == {(name, best.index) for name, best in plain.items()}


def test_replicas_follow_the_load_and_no_request_is_lost(house: House, plain):
    house.until(lambda: house.running() == 1, seconds=START)
    with house.traffic() as busy:
        house.until(lambda: house.running() == 2, seconds=START)
        assert len(set(house.processes().values())) == 2  # one on each node
        busy.until_more(50)
    with house.traffic(threads=1, pause=1.0) as calm:
        house.until(lambda: house.running() == 1 and len(house.processes()) == 1, seconds=START)
        calm.until_more(3)
    check(busy, plain)
    check(calm, plain)


def test_nobody_notices_that_a_replica_is_killed_and_its_figures_stay(house: House, plain):
    house.reset_statistics()
    with house.traffic() as traffic:
        before = house.until(lambda: house.running() == 2 and house.processes(), seconds=START)
        traffic.until_more(20)
        house.kill(next(iter(before)))
        traffic.until_more(50)
        house.until(
            lambda: house.running() == 2 and len(found := house.processes()) == 2 and found != before, seconds=START
        )
        traffic.until_more(20)
    check(traffic, plain)
    # Each photo counts once for each answer, whichever replica gave it, and whether that one lives.
    live = house.client.get("/routing", params={"window": "all", "classes": len(PHOTOS)}).json()
    assert live["images"] == traffic.total()
    expected: Counter[int] = Counter()
    for (_, _, best), count in traffic.answers.items():
        expected[best] += count
    assert {entry["index"]: entry["images"] for entry in live["classes"]["most_frequent"]} == expected


def test_nobody_notices_that_a_new_version_comes(house: House, plain):
    with house.traffic() as traffic:
        house.until(lambda: house.running() == 2, seconds=START)
        house.add_version(2)
        house.until(lambda: traffic.last_version == "2")
        traffic.until_more(50)
        assert traffic.last_version == "2"
    check(traffic, plain, versions=("1", "2"))


def test_nobody_notices_that_a_node_is_killed(house: House, plain):
    with house.traffic() as traffic:
        house.until(lambda: len(set(house.processes().values())) == 2 and house.running() == 2, seconds=START)
        traffic.until_more(20)
        house.kill_node(house.second_node)
        traffic.until_more(50)
        house.second_node = house.add_node()
        house.until(lambda: len(set(house.processes().values())) == 2, seconds=START)
        traffic.until_more(20)
    check(traffic, plain, versions=("2",))
