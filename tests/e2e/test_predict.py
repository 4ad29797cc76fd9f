"""`POST /predict` and `POST /routing` with real photographs, in every form of request."""

from __future__ import annotations

import base64
import functools
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests import pictures
from tests.e2e.server import MODEL, RunningServer, Server, probabilities, top, wait_for

ESPRESSO, CUP = 967, 968
COFFEE = pictures.photo("coffee", (300, 200))
FILES = pictures.accepted(COFFEE)
# Black and white alone, or half of the picture on white, leaves another picture.
DIFFERENT = {"png_1bit", "tiff_1bit", "bmp_1bit", "png_16bit_grey_alpha"}
BLOCKS = [f"block_{i}" for i in range(8, 16)]


def all_probabilities(client: httpx.Client, image: bytes) -> np.ndarray:
    return np.array(probabilities(client.post("/predict?top_k=1000", content=image))[0])


@pytest.mark.parametrize("name", sorted(set(FILES) - DIFFERENT))
def test_same_photograph_in_every_format_is_the_same_class(client: httpx.Client, name: str) -> None:
    assert top(client.post("/predict", content=FILES[name])) == ESPRESSO


@pytest.mark.parametrize("name", ["png_1bit", "tiff_1bit", "bmp_1bit"])
def test_black_and_white_is_read_as_what_it_looks_like(client: httpx.Client, name: str) -> None:
    looks = pictures.encode(Image.fromarray(COFFEE).convert("1").convert("RGB"), "PNG")
    np.testing.assert_allclose(all_probabilities(client, FILES[name]), all_probabilities(client, looks), atol=1e-5)


@functools.cache
def opaque() -> dict[str, bytes]:
    rgba = Image.fromarray(COFFEE).convert("RGBA")
    deep = np.dstack([COFFEE.astype(np.uint16) * 257, np.full(COFFEE.shape[:2], 65535, np.uint16)])
    return {
        "png_rgba": pictures.encode(rgba, "PNG"),
        "png_16bit_rgba": pictures.png(deep),
        "webp": pictures.encode(rgba, "WEBP", lossless=True),
        "tiff": pictures.encode(rgba, "TIFF"),
        "bmp": pictures.encode(rgba, "BMP"),
    }


@pytest.mark.parametrize(("name", "image"), opaque().items(), ids=opaque())
def test_opaque_alpha_changes_nothing(client: httpx.Client, name: str, image: bytes) -> None:
    np.testing.assert_allclose(all_probabilities(client, image), all_probabilities(client, FILES["png"]), atol=1e-5)


@pytest.mark.parametrize("orientation", pictures.ORIENTATIONS)
@pytest.mark.parametrize(("file_format", "tolerance"), [("JPEG", 0.05), ("PNG", 1e-4), ("TIFF", 1e-4)])
def test_exif_orientation_is_applied(
    client: httpx.Client, file_format: str, tolerance: float, orientation: int
) -> None:
    # The smaller a photograph, the more a JPEG of it loses, and in other places when it lies on its side.
    photograph = pictures.photo("coffee") if file_format == "JPEG" else COFFEE
    turned = pictures.oriented(photograph, orientation, file_format)
    upright = pictures.encode(photograph, file_format)
    difference = np.abs(all_probabilities(client, turned) - all_probabilities(client, upright)).max()
    assert difference <= tolerance


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "image/jpeg",
        "image/png",
        "IMAGE/JPEG",
        "image/jpeg; quality=high",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
    ],
)
def test_raw_body(client: httpx.Client, coffee: bytes, content_type: str | None) -> None:
    """Of whatever type: what the bytes are shows when they are read. curl says that they are a form."""
    headers = {} if content_type is None else {"content-type": content_type}
    assert top(client.post("/predict", content=coffee, headers=headers)) == ESPRESSO


def test_chunked_raw_body(client: httpx.Client, coffee: bytes) -> None:
    response = client.post("/predict", content=(coffee[i : i + 1000] for i in range(0, len(coffee), 1000)))
    assert top(response) == ESPRESSO


def test_shape_of_the_answer(client: httpx.Client, coffee: bytes) -> None:
    response = client.post("/predict", params={"top_k": 2}, content=coffee)
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["model", "predictions"]
    assert body["model"] == {"name": MODEL, "version": "1"}
    (entry,) = body["predictions"]
    assert list(entry) == ["id", "classes", "timings_ms", "batch_size"]
    assert entry["id"] == "0"
    assert 1 <= entry["batch_size"] <= 8, "others may ask, too"
    best, second = entry["classes"]
    assert list(best) == ["index", "label", "synset", "probability"]
    assert (best["index"], best["label"], best["synset"]) == (ESPRESSO, "espresso", "n07920052")
    assert 0 < second["probability"] < best["probability"] < 1
    timings = entry["timings_ms"]
    assert list(timings) == ["decode", "queue", "inference", "total"]
    assert min(timings.values()) >= 0
    assert timings["total"] >= max(timings["decode"], timings["inference"])


@pytest.mark.parametrize("top_k", [1, 2, 5, 999, 1000])
def test_top_k(client: httpx.Client, coffee: bytes, top_k: int) -> None:
    (entry,) = client.post("/predict", params={"top_k": top_k}, content=coffee).json()["predictions"]
    scores = [scored["probability"] for scored in entry["classes"]]
    assert len(scores) == top_k
    assert scores == sorted(scores, reverse=True)
    assert len({scored["index"] for scored in entry["classes"]}) == top_k
    assert len({scored["label"] for scored in entry["classes"]}) == top_k


def test_five_classes_unless_told_otherwise(client: httpx.Client, coffee: bytes) -> None:
    assert len(client.post("/predict", content=coffee).json()["predictions"][0]["classes"]) == 5


def test_probabilities_sum_to_one(client: httpx.Client, coffee: bytes) -> None:
    assert all_probabilities(client, coffee).sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("query", [{"model": MODEL}, {"version": "1"}, {"model": MODEL, "version": "1"}])
def test_model_and_version(client: httpx.Client, coffee: bytes, query: dict[str, str]) -> None:
    assert top(client.post("/predict", params=query, content=coffee)) == ESPRESSO


def test_many_files_are_answered_in_order(client: httpx.Client, coffee: bytes, cat: bytes) -> None:
    names = ["coffee.jpg", "cat.jpg", "coffee again ☕.jpg"]
    files = [("image", (name, cat if "cat" in name else coffee)) for name in names]
    response = client.post("/predict?top_k=1", files=files)
    entries = response.json()["predictions"]
    assert [entry["id"] for entry in entries] == ["0", "1", "2"]
    assert [entry["filename"] for entry in entries] == names
    first, second, third = (entry["classes"][0]["index"] for entry in entries)
    assert first == third == ESPRESSO
    assert second in range(281, 286)


def test_files_may_have_any_field_name(client: httpx.Client, coffee: bytes) -> None:
    assert top(client.post("/predict", files={"whatever": ("a.jpg", coffee)})) == ESPRESSO


def test_form_fields_are_parameters(client: httpx.Client, coffee: bytes) -> None:
    fields = {"top_k": "3", "routing": "true", "model": MODEL, "version": "1"}
    (entry,) = client.post("/predict", data=fields, files={"image": ("a.jpg", coffee)}).json()["predictions"]
    assert len(entry["classes"]) == 3
    assert list(entry["routing"]) == BLOCKS


def encoded(image: bytes) -> str:
    return base64.b64encode(image).decode()


@pytest.mark.parametrize("prefix", ["", "data:image/jpeg;base64,", "data:;base64,"])
@pytest.mark.parametrize("as_object", [False, True])
def test_json(client: httpx.Client, coffee: bytes, prefix: str, as_object: bool) -> None:
    text = prefix + encoded(coffee)
    assert top(client.post("/predict", json={"images": [{"data": text} if as_object else text]})) == ESPRESSO


def test_json_with_line_breaks_in_the_base64(client: httpx.Client, coffee: bytes) -> None:
    assert top(client.post("/predict", json={"images": [base64.encodebytes(coffee).decode()]})) == ESPRESSO


def test_json_names_and_parameters(client: httpx.Client, coffee: bytes, cat: bytes) -> None:
    images: list[Any] = [{"data": encoded(cat), "id": "tom", "filename": "tom.jpg"}, encoded(coffee)]
    body = {"images": images, "top_k": 2, "routing": True, "model": MODEL, "version": "1"}
    first, second = client.post("/predict", json=body).json()["predictions"]
    assert (first["id"], first["filename"]) == ("tom", "tom.jpg")
    assert second["id"] == "1"
    assert "filename" not in second
    assert [len(entry["classes"]) for entry in (first, second)] == [2, 2]
    assert list(first["routing"]) == list(second["routing"]) == BLOCKS


def test_all_forms_of_request_give_the_same_answer(fake_server: Server, coffee: bytes) -> None:
    """To the last digit, so nobody else may ask: others' images in a batch change the last digits."""
    client, query = fake_server.client, "/predict?top_k=1000"
    raw, form, document = (
        probabilities(response)
        for response in (
            client.post(query, content=coffee),
            client.post(query, files={"image": ("a.jpg", coffee)}),
            client.post(query, json={"images": [encoded(coffee)]}),
        )
    )
    assert raw == form == document


@pytest.mark.parametrize(("value", "there"), [(None, False), ("false", False), ("0", False), ("true", True)])
def test_routing_only_on_request(client: httpx.Client, coffee: bytes, value: str | None, there: bool) -> None:
    params = {} if value is None else {"routing": value}
    (entry,) = client.post("/predict", params=params, content=coffee).json()["predictions"]
    assert ("routing" in entry) is there


def test_routing_is_always_there_at_its_own_address(client: httpx.Client, coffee: bytes, cat: bytes) -> None:
    files = [("image", ("coffee.jpg", coffee)), ("image", ("cat.jpg", cat))]
    routed = client.post("/routing?top_k=1", files=files).json()["predictions"]
    predicted = client.post("/predict?top_k=1&routing=true", files=files).json()["predictions"]
    for entry, same in zip(routed, predicted, strict=True):
        assert list(entry) == [*same, "insight"]
        assert list(entry["routing"]) == BLOCKS
        weights = np.array(list(entry["routing"].values()))
        assert weights.shape == (8, 4)
        assert weights.min() > 0
        assert weights.max() < 1
        np.testing.assert_allclose(weights, list(same["routing"].values()), atol=1e-5)
    first, second = (np.array(list(entry["routing"].values())) for entry in routed)
    assert np.abs(first - second).max() > 0.05


@pytest.mark.parametrize(
    "given", ["a", "abc-123", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "x" * 128]
)
def test_request_id_is_echoed(server: RunningServer, client: httpx.Client, coffee: bytes, given: str) -> None:
    response = client.post("/predict", content=coffee, headers={"X-Request-Id": given})
    assert response.headers["X-Request-Id"] == given
    wait_for(lambda: f"[{given}]" in server.log)


@pytest.mark.parametrize("given", [None, b"", b"a b", b"x" * 129, b"caf\xe9", b"a\tb"])
def test_request_id_is_made_where_none_fit_is_given(client: httpx.Client, given: bytes | None) -> None:
    headers = [] if given is None else [(b"X-Request-Id", given)]
    ids = {client.get("/nowhere", headers=headers).headers["X-Request-Id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(len(made) == 32 and int(made, 16) >= 0 for made in ids)
