"""What the front says of the server and its models, and what admins change."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import httpx
import pytest

from condconv_serve import __version__
from condconv_serve.domain import RoutingLayout
from condconv_serve.errors import BundleError, ModelNotFound
from condconv_serve.fronts.keys import ApiKey, KeyRing
from condconv_serve.fronts.oip.metadata import EXTENSIONS
from condconv_serve.serving.versions import VersionStatus
from condconv_serve.store.aliases import Alias
from tests.contract.fakes import FakeModels, NoVersions, model_info, served_model
from tests.contract.fronts import House
from tests.unit.fronts.oip.application import INFER, binary_images, opened, picture

UNEVEN = RoutingLayout(("block_1", "block_2"), (3, 2))


class Aliased(FakeModels):
    """Models with the alias `stable` for version 2."""

    def aliases(self, name: str) -> Mapping[str, Alias]:
        return {"stable": Alias(versions={"2": 1})} if name == "fake" else {}


class Store(NoVersions):
    """A store with two models, of which nothing can be loaded twice; `done` are the changes."""

    def __init__(self, **statuses: list[VersionStatus]) -> None:
        self.statuses = statuses
        self.done: list[tuple[str, str, str]] = []

    def status(self) -> Mapping[str, list[VersionStatus]]:
        return self.statuses

    async def load(self, name: str, version: str) -> VersionStatus:
        if name not in self.statuses:
            raise ModelNotFound(f"There is no model {name!r} in the store; there are: pear.")
        if version == "3":
            raise BundleError("pear/3: weights.safetensors is missing.")
        self.done.append(("load", name, version))
        return VersionStatus(version, "serving")

    async def unload(self, name: str, version: str) -> VersionStatus:
        self.done.append(("unload", name, version))
        return VersionStatus(version, "available")


def two_versions() -> FakeModels:
    infos = [model_info(version=version, layout=UNEVEN) for version in ("10", "2")]
    return Aliased(*map(served_model, [*infos, model_info("pear")]))


async def get(path: str, **options: Any) -> httpx.Response:
    async with opened(House(models=two_versions())) as client:
        return await client.get(path, **options)


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
async def test_the_server(path: str) -> None:
    assert (await get(path)).json() == {
        "name": "condconv-serve",
        "version": __version__,
        "extensions": list(EXTENSIONS),
    }


async def test_names() -> None:
    assert (await get("/v2/models")).json() == {"models": ["fake", "pear"]}


@pytest.mark.parametrize(("path", "version"), [("/v2/models/fake", "10"), ("/v2/models/fake/versions/2", "2")])
async def test_a_model(path: str, version: str) -> None:
    assert (await get(path)).json() == {
        "name": "fake",
        "versions": ["2", "10"],
        "platform": "condconv_bundle",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, 32, 32, 3]},
        ],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 6]},
            {"name": "routing", "datatype": "FP32", "shape": [-1, 2, 3]},
            {"name": "features", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 6]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ],
        "parameters": {
            "version": version,
            "task": "classification",
            "image_size": "32",
            "pixels_datatypes": '["UINT8", "FP32"]',
            "routing_blocks": '["block_1", "block_2"]',
            "routing_experts": "[3, 2]",
            "aliases": '["stable"]',
        },
    }


async def test_a_model_s_configuration_has_what_tools_of_triton_look_for() -> None:
    found = (await get("/v2/models/fake/config")).json()
    metadata = (await get("/v2/models/fake")).json()
    assert (found["name"], found["max_batch_size"]) == ("fake", 0), "rows are an axis of each tensor"
    for kind, names in (("input", "inputs"), ("output", "outputs")):
        assert [(each["name"], each["dims"]) for each in found[kind]] == [
            (each["name"], each["shape"]) for each in metadata[names]
        ]
    assert [(each["data_type"], each["optional"]) for each in found["input"]] == [
        ("TYPE_STRING", True),
        ("TYPE_UINT8", True),
    ]


@pytest.mark.parametrize("suffix", ["", "/config", "/stats", "/ready"])
@pytest.mark.parametrize(
    ("model", "message"),
    [("/v2/models/x", "Model 'x' is not served"), ("/v2/models/fake/versions/9", "not served in version '9'")],
)
async def test_there_is_no_such_model(model: str, message: str, suffix: str) -> None:
    response = await get(model + suffix)
    assert response.status_code == 404
    assert message in response.json()["error"]


async def test_names_are_not_endless() -> None:
    response = await get(f"/v2/models/{'x' * 300}")
    assert (response.status_code, response.json()["error"]) == (
        400,
        "Names and versions of models have at most 256 characters.",
    )


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_probes(method: str) -> None:
    house = House()
    async with opened(house) as client:
        for path, body in (
            ("/v2/health/live", {"live": True}),
            ("/v2/health/ready", {"live": True, "ready": True}),
        ):
            response = await client.request(method, path)
            assert response.status_code == 200
            assert method == "HEAD" or response.json() == body
        house.readiness.drain()
        assert (await client.request(method, "/v2/health/live")).status_code == 200
        assert (await client.request(method, "/v2/health/ready")).status_code == 400, "the protocol wants 4xx"


async def test_a_model_is_ready_as_long_as_it_takes_requests() -> None:
    house = House()
    async with opened(house) as client:
        assert (await client.get("/v2/models/fake/ready")).json() == {"name": "fake", "ready": True}
        house.readiness.drain()
        response = await client.get("/v2/models/fake/ready")
    assert (response.status_code, response.json()["ready"]) == (400, False)


# --- statistics


async def test_statistics_count_what_happened() -> None:
    house = House()
    async with opened(house) as client:
        nothing = (await client.get("/v2/models/fake/versions/1/stats")).json()["model_stats"][0]
        assert (nothing["last_inference"], nothing["inference_count"], nothing["batch_stats"]) == (0, 0, [])
        for count in (1, 3):
            assert (await client.post(INFER, **binary_images(*[picture(1)] * count))).status_code == 200
        assert (await client.post(INFER, **binary_images(picture(1), b"no image"))).status_code == 400
        house.tallies.batch("fake", "1", rows=3, seconds=0.5)
        house.tallies.batch("fake", "1", rows=1, seconds=0.1)
        house.tallies.batch("fake", "1", rows=3, seconds=0.7)
        (found,) = (await client.get("/v2/models/fake/stats")).json()["model_stats"]
        assert (await client.get("/v2/models/stats")).json()["model_stats"] == [found]
    assert (found["name"], found["version"], found["inference_count"], found["execution_count"]) == ("fake", "1", 5, 3)
    stats = found["inference_stats"]
    assert {name: total["count"] for name, total in stats.items()} == {
        **{"success": 2, "fail": 1, "cache_hit": 0, "cache_miss": 0},
        **dict.fromkeys(("queue", "compute_input", "compute_infer", "compute_output"), 5),
    }
    assert all(stats[name]["ns"] > 0 for name in ("success", "fail", "compute_input", "compute_infer"))
    assert found["last_inference"] > 1.7e12
    assert [(batch["batch_size"], batch["compute_infer"]) for batch in found["batch_stats"]] == [
        (1, {"count": 1, "ns": 100_000_000}),
        (3, {"count": 2, "ns": 1_200_000_000}),
    ]


async def test_statistics_are_of_each_version() -> None:
    for path, expected in (
        ("/v2/models/stats", [("fake", "2"), ("fake", "10"), ("pear", "1")]),
        ("/v2/models/fake/stats", [("fake", "2"), ("fake", "10")]),
        ("/v2/models/fake/versions/2/stats", [("fake", "2")]),
    ):
        found = (await get(path)).json()["model_stats"]
        assert [(each["name"], each["version"]) for each in found] == expected


async def test_a_model_called_stats_is_described_beside_the_statistics() -> None:
    async with opened(House(models=FakeModels(served_model(model_info("stats"))))) as client:
        both = (await client.get("/v2/models/stats")).json()
        assert both == {
            **(await client.get("/v2/models/stats/versions/1")).json(),
            **(await client.get("/v2/models/stats/stats")).json(),
        }
        assert (both["name"], both["model_stats"][0]["name"]) == ("stats", "stats")
        assert (await client.get("/v2/models/stats/ready")).json() == {"name": "stats", "ready": True}


# --- the repository


def store() -> Store:
    return Store(
        fake=[VersionStatus("2", "serving"), VersionStatus("10", "stale", "its files are gone")],
        pear=[
            VersionStatus("1", "available"),
            VersionStatus("2", "failed", "weights.safetensors is missing"),
            VersionStatus("11", "loading"),
        ],
    )


async def post(
    path: str, body: Any = None, *, versions: Store | None = None, text: str | None = None
) -> httpx.Response:
    async with opened(House(models=two_versions()), versions=versions or store()) as client:
        return await client.post(path, content=text if text is not None else b"" if body is None else json.dumps(body))


@pytest.mark.parametrize("body", [None, {}, {"ready": False}])
async def test_the_index(body: Any) -> None:
    assert (await post("/v2/repository/index", body)).json() == [
        {"name": "fake", "version": "2", "state": "READY", "reason": ""},
        {"name": "fake", "version": "10", "state": "READY", "reason": "its files are gone"},
        {"name": "pear", "version": "1", "state": "UNAVAILABLE", "reason": "not loaded"},
        {"name": "pear", "version": "2", "state": "UNAVAILABLE", "reason": "weights.safetensors is missing"},
        {"name": "pear", "version": "11", "state": "LOADING", "reason": ""},
    ]


async def test_the_index_of_what_is_ready() -> None:
    found = (await post("/v2/repository/index", {"ready": True})).json()
    assert [(each["name"], each["version"]) for each in found] == [("fake", "2"), ("fake", "10")]


@pytest.mark.parametrize(
    ("body", "version"), [(None, "11"), ({}, "11"), ({"parameters": {"version": "1", "own": True}}, "1")]
)
async def test_load(body: Any, version: str) -> None:
    versions = store()
    response = await post("/v2/repository/models/pear/load", body, versions=versions)
    assert (response.status_code, versions.done) == (200, [("load", "pear", version)])


@pytest.mark.parametrize(
    ("model", "body", "done"),
    [
        ("pear", {"parameters": {"unload_dependents": True}}, [("unload", "pear", "1")]),
        ("fake", {"parameters": {"version": "10"}}, [("unload", "fake", "10")]),
    ],
)
async def test_unload(model: str, body: Any, done: Any) -> None:
    versions = store()
    response = await post(f"/v2/repository/models/{model}/unload", body, versions=versions)
    assert (response.status_code, versions.done) == (200, done)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("index", {"ready": 1}, 400, "ready must be true or false"),
        ("index", [], 400, "Is not object"),
        ("models/grape/load", {}, 404, "no model 'grape' in the store"),
        ("models/pear/load", {"parameters": {"version": "3"}}, 400, "weights.safetensors is missing"),
        ("models/pear/load", {"parameters": {"version": 1}}, 400, "version must be text"),
        ("models/pear/load", {"parameters": {"config": "{}"}}, 400, "not with the parameter 'config'"),
        ("models/pear/load", {"parameters": {"file:1/model": "QQ=="}}, 400, "not with the parameter 'file:1/model'"),
        ("models/pear/load", {"parameters": 5}, 400, "must be an object"),
        ("models/fake/unload", {}, 409, "fake is the default model"),
        ("models/grape/unload", {}, 404, "no model 'grape' in the store"),
        ("models/pear/unload", {"parameters": {"x": "y" * 70_000}}, 413, "more than 65536 bytes"),
    ],
)
async def test_what_the_repository_refuses(path: str, body: Any, status: int, message: str) -> None:
    versions = store()
    response = await post(f"/v2/repository/{path}", body, versions=versions)
    assert (response.status_code, response.json().keys(), versions.done) == (status, {"error"}, [])
    assert message in response.json()["error"]


async def test_a_model_with_aliases_is_not_unloaded_as_a_whole() -> None:
    models, versions = two_versions(), store()
    models.served = {"pear": models.served["pear"], "fake": models.served["fake"]}
    async with opened(House(models=models), versions=versions) as client:
        response = await client.post("/v2/repository/models/fake/unload")
    assert (response.status_code, versions.done) == (409, [])
    assert "aliases that point at its versions: stable" in response.json()["error"]


# --- who may do what


def key(name: str, *scopes: Any) -> ApiKey:
    return ApiKey(name=name, scopes=scopes, sha256=sha256(name.encode()).hexdigest())


KEYS = KeyRing([key("user", "predict"), key("admin", "admin")])
GUARDED = [
    ("GET", "/v2"),
    ("GET", "/v2/models"),
    ("GET", "/v2/models/fake"),
    ("GET", "/v2/models/fake/ready"),
    ("GET", "/v2/models/fake/config"),
    ("GET", "/v2/models/stats"),
    ("POST", "/v2/repository/index"),
    ("POST", INFER),
    ("GET", "/v2/systemsharedmemory/status"),
]
CHANGES = [("POST", "/v2/repository/models/pear/load"), ("POST", "/v2/repository/models/pear/unload")]


async def test_keys() -> None:
    async with opened(House(models=two_versions()), keys=KEYS, versions=store()) as client:
        for method, path in GUARDED + CHANGES:
            response = await client.request(method, path)
            assert (response.status_code, response.json().keys()) == (401, {"error"}), path
            assert response.headers["www-authenticate"] == "Bearer"
        for headers in ({"X-API-Key": "user"}, {"Authorization": "Bearer user"}):
            for method, path in GUARDED:
                assert (await client.request(method, path, headers=headers)).status_code in (200, 400), path
            for method, path in CHANGES:
                assert (await client.request(method, path, headers=headers)).status_code == 403
        for method, path in CHANGES:
            assert (await client.request(method, path, headers={"X-API-Key": "admin"})).status_code == 200
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/openapi.json", "/v2/docs"):
            assert (await client.get(path)).status_code == 200, path


async def test_every_documented_route_is_guarded_but_for_the_probes() -> None:
    async with opened(keys=KEYS) as client:
        paths = (await client.get("/v2/openapi.json")).json()["paths"]
        found = {
            (method, path): (
                (await client.request(method, path.replace("{model}", "fake").replace("{version}", "1"))).status_code,
                "security" in operation,
                "401" in operation["responses"],
            )
            for path, operations in paths.items()
            for method, operation in operations.items()
        }
    probes = {("get", "/v2/health/live"), ("get", "/v2/health/ready")}
    assert {route for route, answered in found.items() if answered == (200, False, False)} == probes
    assert {answered for route, answered in found.items() if route not in probes} == {(401, True, True)}


async def test_every_answer_has_the_headers() -> None:
    async with opened(cors_origins=["https://a.org"]) as client:
        for path in ("/v2", "/v2/nothing", "/v2/models/fake"):
            response = await client.get(path, headers={"Origin": "https://a.org", "X-Request-Id": "mine"})
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["x-request-id"] == "mine"
            assert response.headers["access-control-allow-origin"] == "https://a.org"
        assert (await client.post(INFER)).headers["cache-control"] == "no-store"
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        assert trace[:35] in (await client.get("/v2", headers={"traceparent": trace})).headers["traceresponse"]


# --- what isn't there


async def test_shared_memory_is_refused() -> None:
    async with opened() as client:
        for kind in ("systemsharedmemory", "cudasharedmemory"):
            for path in (f"/v2/{kind}/status", f"/v2/{kind}/region/a/status"):
                assert (await client.get(path)).json() == []
            for path in ("region/a/register", "region/a/unregister", "unregister"):
                response = await client.post(f"/v2/{kind}/{path}", json={})
                assert (response.status_code, response.json().keys()) == (400, {"error"})
                assert "shared memory" in response.json()["error"]


async def test_unknown_routes_and_methods() -> None:
    async with opened() as client:
        response = await client.get("/v2/trace/setting")
        assert (response.status_code, response.json()) == (
            404,
            {"error": "There is nothing at /v2/trace/setting; /v2/openapi.json lists what there is."},
        )
        response = await client.get(INFER)
        assert (response.status_code, response.json()) == (405, {"error": f"{INFER} doesn't take GET; it takes POST."})
        assert response.headers["allow"] == "POST"


async def test_a_client_that_leaves_counts_as_failed() -> None:
    house = House()
    async with opened(house) as client:
        house.free.clear()
        leaving = asyncio.create_task(client.post(INFER, **binary_images(picture(1))))
        while not house.batcher.submitted:  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.001)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        house.free.set()
        (found,) = (await client.get("/v2/models/fake/stats")).json()["model_stats"]
    assert {name: found["inference_stats"][name]["count"] for name in ("success", "fail")} == {"success": 0, "fail": 1}
