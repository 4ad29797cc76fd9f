"""Versions that come, go and change places while requests are being answered.

`test_real_versions.py` has what only real networks show.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import pictures
from tests.e2e.live import MODEL, Load, rewrite, served, state
from tests.e2e.server import Server, assert_problem, sample_name, wait_for
from tests.e2e.tiny_models import answered_by, write_fake

SWAPS = 5


@pytest.fixture(scope="module")
def photo() -> bytes:
    return pictures.jpeg(pictures.photo("coffee", (60, 40)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    write_fake(store, MODEL, 1)
    return store


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[Server]:
    with Server(model_store=store, store_poll_interval=5) as running:
        yield running


def test_swaps_under_load(server: Server, store: Path, photo: bytes) -> None:
    """New versions take over one after the other: no request fails, and each is answered by one version alone."""
    first, *_ = served(server.client)
    with Load(server.url, photo).flowing() as load:
        for version in range(int(first) + 1, int(first) + 1 + SWAPS):
            write_fake(store, MODEL, version)
            wait_for(lambda version=version: served(server.client) == [str(version)])  # type: ignore[misc]
            wait_for(lambda version=version: load.answers[str(version)] > 10)  # type: ignore[misc]
            shutil.rmtree(store / MODEL / str(version - 1))
    wait_for(
        lambda: (
            server.metrics().get(sample_name("condconv_model_loads_total", model=MODEL, outcome="unloaded"), 0) >= SWAPS
        )
    )
    samples = server.metrics()
    assert samples[sample_name("condconv_model_loads_total", model=MODEL, outcome="loaded")] >= SWAPS + 1
    assert len([name for name in samples if name.startswith("condconv_model_info")]) == 1


def test_alias_flips_under_load(server: Server, store: Path, photo: bytes) -> None:
    """An alias goes back and forth 50 times; right after each answer to a change everybody gets the new version."""
    client = server.client
    newest = int(served(client)[-1])
    write_fake(store, MODEL, newest + 1)
    alias = f"/models/{MODEL}/aliases/stable"
    for each in (alias, f"/models/{MODEL}/aliases/both"):
        assert client.put(each, json={"versions": {str(newest): 1, str(newest + 1): 1}}).is_success
    with Load(server.url, photo, query="&version=stable", clients=2).flowing() as load:
        for flip in range(50):
            version = str(newest + flip % 2)
            assert client.put(alias, json={"version": version}).json()["versions"] == {version: 1}
            assert answered_by(client.post("/predict?top_k=1&version=stable", content=photo)) == version
        for version in (str(newest), str(newest + 1)):  # the others may have been slow
            assert client.put(alias, json={"version": version}).is_success
            wait_for(lambda version=version: load.answers[version] > 0)  # type: ignore[misc]
    assert set(load.answers) == {str(newest), str(newest + 1)}
    for name in ("stable", "both"):
        assert client.delete(f"/models/{MODEL}/aliases/{name}").status_code == 204


def test_a_split_follows_the_key(server: Server, store: Path, photo: bytes) -> None:
    client = server.client
    newest = int(served(client)[-1])
    write_fake(store, MODEL, newest + 1)
    split = {"versions": {str(newest): 75, str(newest + 1): 25}}
    assert client.put(f"/models/{MODEL}/aliases/canary", json=split).json()["versions"] == split["versions"]

    def ask(**headers: str) -> str:
        return answered_by(client.post("/predict?top_k=1&version=canary", content=photo, headers=headers))

    by_user = {f"user-{i}": ask(**{"X-Split-Key": f"user-{i}"}) for i in range(200)}
    assert 25 < Counter(by_user.values())[str(newest + 1)] < 75
    for user, version in list(by_user.items())[:20]:
        assert ask(**{"X-Split-Key": user, "X-Request-Id": "another"}) == version
    by_request = [ask(**{"X-Request-Id": f"r{i}"}) for i in range(20)]
    assert by_request == [ask(**{"X-Request-Id": f"r{i}"}) for i in range(20)]
    rows = sample_name("condconv_version_rows_total", model=MODEL, version=str(newest + 1))
    wait_for(lambda: server.metrics().get(rows, 0) >= 25)
    client.delete(f"/models/{MODEL}/aliases/canary")


def test_the_default_alias_and_rolling_back(server: Server, store: Path, photo: bytes) -> None:
    client = server.client
    old = int(served(client)[-1])
    new = old + 1
    alias = f"/models/{MODEL}/aliases/default"
    assert client.put(alias, json={"version": str(old)}).is_success
    write_fake(store, MODEL, new)
    wait_for(lambda: str(new) in served(client))
    assert answered_by(client.post("/predict", content=photo)) == str(old)
    assert client.put(alias, json={"version": str(new)}).json() == {
        "versions": {str(new): 1},
        "previous": {str(old): 1},
    }
    assert answered_by(client.post("/predict", content=photo)) == str(new)
    assert client.post(f"{alias}/rollback").json()["versions"] == {str(old): 1}
    assert answered_by(client.post("/predict", content=photo)) == str(old)
    assert client.get(f"/models/{MODEL}/aliases").json()["aliases"].keys() == {"default"}
    assert_problem(client.post(f"/models/{MODEL}/versions/{old}/unload"), 409, "version_in_use", "default")
    assert client.delete(alias).status_code == 204
    assert_problem(client.delete(alias), 404, "alias_not_found", "there are: none")
    assert answered_by(client.post("/predict", content=photo)) == str(new)


def test_load_and_unload(server: Server, store: Path, photo: bytes) -> None:
    client = server.client
    write_fake(store, "other", 1)
    wait_for(lambda: served(client, "other") == ["1"])
    write_fake(store, "other", 2)
    wait_for(lambda: served(client, "other") == ["2"])
    loaded = client.post("/models/other/versions/1/load")
    assert loaded.json() == {"version": "1", "state": "serving"}
    assert answered_by(client.post("/predict?model=other&version=1", content=photo)) == "1"
    assert client.post("/models/other/versions/1/unload").json()["state"] in ("retiring", "available")
    assert_problem(
        client.post("/predict?model=other&version=1", content=photo), 404, "version_not_found", "served are: 2"
    )
    wait_for(lambda: state(client, "1", "other") == {"version": "1", "state": "available"})
    assert client.post("/models/other/versions/2/unload").is_success
    assert_problem(client.post("/predict?model=other", content=photo), 404, "model_not_found")
    assert_problem(client.post("/models/other/versions/3/load"), 404, "version_not_found", "there are: 1, 2")
    assert_problem(client.post("/models/none/versions/3/load"), 404, "model_not_found")
    assert_problem(
        client.put("/models/other/aliases/X", json={"version": "1"}), 422, "invalid_parameter", "can't be called 'X'"
    )
    assert_problem(client.put("/models/other/aliases/x", json={"versions": {"1": 0}}), 422, "invalid_parameter")
    bodies: tuple[object, ...] = (
        {},
        {"version": "1", "versions": {"1": 1}},
        {"versions": {"1": "1"}},
        [],
        {"version": 1},
    )
    for body in bodies:
        assert_problem(client.put("/models/other/aliases/x", json=body), 422, "invalid_parameter")
    for content in (b"{", b"[" * 10_000, b'{"version": "\xff"}', b""):
        response = client.put("/models/other/aliases/x", content=content, headers={"Content-Type": "application/json"})
        assert_problem(response, 400, "malformed_body", "not valid JSON")
    assert_problem(client.put("/models/other/aliases/x", content=b'{"version": "1"}'), 415, "unsupported_body")
    large = {"version": "1" * 2**16}
    assert_problem(client.put("/models/other/aliases/x", json=large), 413, "body_too_large", "65536 bytes")
    assert not (store / "other" / "aliases.json").exists()


def test_documented_examples_of_changes_run(server: Server, store: Path) -> None:
    client = server.client
    openapi = client.get("/openapi.json").json()
    other = served(client)[-1]
    version = str(int(other) + 1)
    write_fake(store, MODEL, int(version))
    wait_for(lambda: served(client) == [version])
    ran = []
    for method, route in (
        ("post", "/models/{name}/versions/{version}/load"),
        ("put", "/models/{name}/aliases/{alias}"),
        ("post", "/models/{name}/aliases/{alias}/rollback"),
        ("delete", "/models/{name}/aliases/{alias}"),
    ):
        operation = openapi["paths"][route][method]
        names = {p["name"]: p["schema"]["examples"][0] for p in operation["parameters"] if p["in"] == "path"}
        place = route.format(**names | {"name": MODEL, "version": version})
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        for example in content.get("examples", {"none": {"value": None}}).values():
            body = json.loads(json.dumps(example["value"]).replace('"1"', f'"{version}"').replace('"2"', f'"{other}"'))
            response = client.request(method, place, json=body)
            assert response.is_success, response.text
            ran.append(route)
    assert len(ran) == 6


def damage_truncated(path: Path) -> str:
    file = path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return "weights.safetensors has"


def damage_tampered(path: Path) -> str:
    file = path / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return "weights.safetensors has SHA-256"


def damage_oversized(path: Path) -> str:
    with (path / "labels.json").open("ab") as file:
        file.truncate(2**31)
    return "labels.json has 2147483648 bytes"


def damage_traversal(path: Path) -> str:
    files = json.loads((path / "manifest.json").read_text())["files"]
    rewrite(path, files=files | {"../../../../etc/passwd": {"size": 1, "sha256": "0" * 64}})
    return "manifest.json is not valid: files"


def damage_link(path: Path) -> str:
    (path / "labels.json").unlink()
    (path / "labels.json").symlink_to("/etc/passwd")
    return "labels.json is missing or no ordinary file"


def damage_schema(path: Path) -> str:
    rewrite(path, schema_version=2)
    return "manifest.json has schema version 2, newer"


def damage_json(path: Path) -> str:
    (path / "manifest.json").write_text("{" * 100_000)
    return "manifest.json is not valid JSON"


def damage_version(path: Path) -> str:
    rewrite(path, version="1")
    return "the manifest says"


LIKE_A_COPY = (damage_truncated, damage_json)
"""What may be half a copy: the rest may come."""


def test_bad_bundles_leave_the_old_one_serving(server: Server, store: Path, photo: bytes, tmp_path: Path) -> None:
    client = server.client
    (good,) = served(client)

    def failures() -> float:
        return server.metrics().get(sample_name("condconv_model_loads_total", model=MODEL, outcome="failed"), 0)

    before = failures()
    with Load(server.url, photo, clients=2).flowing() as load:
        for number, damage in enumerate(v for k, v in globals().items() if k.startswith("damage_")):
            version = str(int(good) + 1 + number)
            path = write_fake(tmp_path, MODEL, int(version))
            says = damage(path)
            shutil.move(path, store / MODEL / version)
            expected = "incomplete" if damage in LIKE_A_COPY else "failed"
            wait_for(lambda version=version, expected=expected: state(client, version).get("state") == expected)  # type: ignore[misc]
            reason = state(client, version)["reason"]
            assert says in reason, reason
            assert str(store) not in reason
            assert_problem(client.post(f"/models/{MODEL}/versions/{version}/load"), 422, "invalid_bundle", says)
            assert served(client) == [good]
            # All at once: half a bundle would be one more that doesn't load.
            shutil.move(store / MODEL / version, tmp_path / f"removed {version}")
    assert set(load.answers) == {good}
    assert failures() == before + 2 * (8 - len(LIKE_A_COPY)), "found in the store, and asked for"
    assert client.get("/readyz").status_code == 200


def test_files_that_break_behind_a_version_that_serves(server: Server, store: Path, photo: bytes) -> None:
    client = server.client
    (version,) = served(client)
    path = store / MODEL / version
    whole = (path / "weights.safetensors").read_bytes()
    damage_tampered(path)
    wait_for(lambda: state(client, version)["state"] == "stale")
    assert "weights.safetensors has SHA-256" in state(client, version)["reason"]
    assert client.post("/predict", content=photo).json()["model"] == {"name": MODEL, "version": version}
    stale = sample_name("condconv_model_version_state", model=MODEL, version=version, state="stale")
    wait_for(lambda: server.metrics().get(stale) == 1)
    assert server.is_ready(), "it answers all the same"
    (path / "weights.safetensors").write_bytes(whole)
    wait_for(lambda: state(client, version) == {"version": version, "state": "serving"})
