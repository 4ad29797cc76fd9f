"""What is refused, how it is said, and that nobody else suffers. No network is needed for that."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests import pictures
from tests.e2e.conftest import BODY_LIMIT
from tests.e2e.server import (
    MODEL,
    PATIENCE,
    Server,
    assert_problem,
    connection,
    new_client,
    sample_name,
    top,
    wait_for,
)

FORMATS = "JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF and HEIC"
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=abc"}
COFFEE = pictures.jpeg(pictures.photo("coffee", (300, 200)))
BASE64 = base64.b64encode(COFFEE).decode()


@pytest.fixture
def server(fake_server: Server) -> Server:
    return fake_server


@pytest.fixture(scope="module")
def answer(fake_server: Server) -> int:
    """The class of the photo that is sent beside what is refused."""
    return top(fake_server.client.post("/predict", content=COFFEE))


@pytest.fixture(autouse=True)
def next_request_works(client: httpx.Client, answer: int) -> Iterator[None]:
    """After each refusal the same connection serves the next one."""
    before = connection(client.get("/livez"))
    yield
    after = client.post("/predict", content=COFFEE)
    assert top(after) == answer
    assert connection(after) == before


def part(disposition: str, content: bytes) -> bytes:
    return b"--abc\r\nContent-Disposition: form-data; " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"


FILE = part('name="image"; filename="a.jpg"', COFFEE)


@pytest.mark.parametrize("path", ["/predict", "/detect", "/features", "/routing"])
def test_empty_body(client: httpx.Client, path: str) -> None:
    assert_problem(client.post(path), 400, "missing_image", "empty")


def test_empty_file(client: httpx.Client) -> None:
    assert_problem(client.post("/predict", files={"image": ("a.jpg", b"")}), 400, "missing_image", "empty")


@pytest.mark.parametrize(("name", "data"), {k: v for k, v in pictures.unsupported().items() if v}.items())
def test_not_an_accepted_image(client: httpx.Client, name: str, data: bytes) -> None:
    response = client.post("/predict", content=data, headers={"content-type": "image/jpeg"})
    assert_problem(response, 415, "unsupported_image", FORMATS)


@pytest.mark.parametrize(("name", "data"), pictures.corrupt().items(), ids=pictures.corrupt())
def test_corrupt_image(client: httpx.Client, name: str, data: bytes) -> None:
    assert_problem(client.post("/predict", content=data), 422, "corrupt_image", "truncated, damaged")


@pytest.mark.parametrize(("name", "data"), pictures.too_large().items(), ids=pictures.too_large())
def test_too_many_pixels_in_the_header(client: httpx.Client, name: str, data: bytes) -> None:
    assert_problem(client.post("/predict", content=data), 413, "image_too_large", "50000000 are allowed")


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("factor", [1, 2])
def test_too_many_bytes(client: httpx.Client, chunked: bool, factor: int) -> None:
    """The client can read the answer although it was still sending."""
    size = BODY_LIMIT * factor + 1
    chunks = (bytes(min(65536, size - i)) for i in range(0, size, 65536))
    response = client.post("/predict", content=chunks if chunked else bytes(size))
    assert_problem(response, 413, "body_too_large", str(BODY_LIMIT))


def test_no_route_asks_for_a_body_that_is_declared_to_be_too_long(server: Server, client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    routes = [(m, path) for path, methods in document["paths"].items() for m in methods if "requestBody" in methods[m]]
    assert len(routes) >= 4
    for method, path in routes:
        with socket.create_connection(server.address, timeout=PATIENCE) as connected:
            head = f"{method.upper()} {path.format(name=MODEL, alias='any')} HTTP/1.1\r\nHost: x\r\n"
            rest = f"Content-Type: application/json\r\nContent-Length: {BODY_LIMIT + 1}\r\nExpect: 100-continue\r\n\r\n"
            connected.sendall((head + rest).encode())
            received = b""
            while more := connected.recv(65536):
                received += more
        assert received.startswith(b"HTTP/1.1 413 "), (method, path, received)


def test_as_many_bytes_as_allowed(client: httpx.Client) -> None:
    assert_problem(client.post("/predict", content=bytes(BODY_LIMIT)), 415, "unsupported_image")


def test_too_many_files(client: httpx.Client) -> None:
    for count in (65, 100):
        files = [("image", (f"{i}.jpg", b"x")) for i in range(count)]
        assert_problem(client.post("/predict", files=files), 413, "too_many_images", "64")


def test_too_many_images_in_json(client: httpx.Client) -> None:
    assert_problem(client.post("/predict", json={"images": ["eA=="] * 65}), 413, "too_many_images", "64")


@pytest.mark.parametrize(
    ("body", "status", "slug", "says"),
    [
        ("{", 400, "malformed_body", "not valid JSON"),
        ("\xff", 400, "malformed_body", "not valid JSON"),
        ("[" * 100_000, 400, "malformed_body", "not valid JSON"),
        ("[]", 422, "invalid_parameter", '{"images": ["<base64>"]'),
        ("null", 422, "invalid_parameter", '{"images": ["<base64>"]'),
        ("{}", 422, "invalid_parameter", '{"images": ["<base64>"]'),
        ('{"image": "x"}', 422, "invalid_parameter", '{"images": ["<base64>"]'),
        ('{"images": "x"}', 422, "invalid_parameter", "images: Input should be a valid list"),
        ('{"images": {}}', 422, "invalid_parameter", "images: Input should be a valid list"),
        ('{"images": []}', 400, "missing_image", "no image"),
        ('{"images": [1]}', 422, "invalid_parameter", "images.0: give an image as base64"),
        ('{"images": [null]}', 422, "invalid_parameter", "images.0: give an image as base64"),
        ('{"images": [{}]}', 422, "invalid_parameter", "images.0.data: Field required"),
        ('{"images": [{"data": 1}]}', 422, "invalid_parameter", "images.0.data: Input should be a valid string"),
        ('{"images": [{"data": "", "url": ""}]}', 422, "invalid_parameter", "images.0.url: no such parameter"),
        ('{"images": ["***"]}', 400, "malformed_body", "Image 0 is not valid base64"),
        ('{"images": ["e"]}', 400, "malformed_body", "Image 0 is not valid base64"),
        ('{"images": ["\\ud800"]}', 400, "malformed_body", "Image 0 is not valid base64"),
        ('{"images": ["https://example.com/a.jpg"]}', 400, "malformed_body", "Image 0 is not valid base64"),
        ('{"images": [""]}', 400, "missing_image", "empty"),
        ('{"images": ["eA=="], "top_k": 0}', 422, "invalid_parameter", "top_k: Input should be greater than or equal"),
        ('{"images": ["eA=="], "top_k": "x"}', 422, "invalid_parameter", "top_k: Input should be a valid integer"),
        ('{"images": ["eA=="], "top_k": NaN}', 422, "invalid_parameter", "top_k: Input should be a finite number"),
        ('{"images": ["eA=="], "routing": []}', 422, "invalid_parameter", "routing: Input should be a valid boolean"),
        ('{"images": ["eA=="], "model": 1}', 422, "invalid_parameter", "model: Input should be a valid string"),
        ('{"images": ["eA=="], "topk": 1}', 422, "invalid_parameter", "topk: no such parameter. Parameters are model"),
        ('{"images": ["eA=="], "\\ud800": 1}', 422, "invalid_parameter", "?: no such parameter"),
        (
            '{"images": [{"data": "", "a": 1, "b": 1, "c": 1}]}',
            422,
            "invalid_parameter",
            "the only fields are data, id, filename",
        ),
        ('{"images": ["eA=="], "top_k": ' + "1" * 5000 + "}", 400, "malformed_body", "too long a number"),
    ],
)
def test_json(client: httpx.Client, body: str, status: int, slug: str, says: str) -> None:
    response = client.post("/predict", content=body.encode("latin-1"), headers=JSON)
    assert_problem(response, status, slug, says)


def test_hostile_names_are_not_echoed_at_length(client: httpx.Client) -> None:
    response = client.post("/predict", json={"images": [BASE64], "k" * 1_000_000: 1})
    assert_problem(response, 422, "invalid_parameter", "no such parameter")
    assert len(response.content) < 2000


@pytest.mark.parametrize(
    ("query", "status", "slug", "says"),
    [
        ("top_k=0", 422, "invalid_parameter", "greater than or equal to 1"),
        ("top_k=-1", 422, "invalid_parameter", "greater than or equal to 1"),
        ("top_k=1001", 422, "invalid_parameter", "from 1 to 1000"),
        ("top_k=" + "9" * 30, 422, "invalid_parameter", "from 1 to 1000"),
        ("top_k=abc", 422, "invalid_parameter", "valid integer"),
        ("top_k=1.5", 422, "invalid_parameter", "valid integer"),
        ("top_k=", 422, "invalid_parameter", "valid integer"),
        ("top_k=1&top_k=2", 422, "invalid_parameter", "top_k: given more than once"),
        ("routing=maybe", 422, "invalid_parameter", "valid boolean"),
        (
            "topk=3",
            422,
            "invalid_parameter",
            "topk: no such parameter. Parameters are model, version, timeout_ms",
        ),
        ("timeout_ms=0", 422, "invalid_parameter", "greater than or equal to 1"),
        ("timeout_ms=30001", 422, "invalid_parameter", "at most 30000, not 30001"),
        ("timeout_ms=1.5", 422, "invalid_parameter", "valid integer"),
        ("priority=urgent", 422, "invalid_parameter", "'high', 'normal' or 'low'"),
        ("model=nonesuch", 404, "model_not_found", MODEL),
        ("version=7", 404, "version_not_found", "served are: 1"),
        (f"model={MODEL}&version=..%2f1", 404, "version_not_found", "served are: 1"),
        ("model=" + "x" * 2000, 422, "invalid_parameter", "at most 1024"),
    ],
)
def test_query(client: httpx.Client, query: str, status: int, slug: str, says: str) -> None:
    assert_problem(client.post(f"/predict?{query}", content=COFFEE), status, slug, says)


def test_routing_takes_no_routing_parameter(client: httpx.Client) -> None:
    response = client.post("/routing?routing=true", content=COFFEE)
    assert_problem(response, 422, "invalid_parameter", "routing: no such parameter", "top_k, threshold, format.")


def test_parameter_in_query_and_body(client: httpx.Client) -> None:
    for body in ({"json": {"images": [BASE64], "top_k": 1}}, {"data": {"top_k": "1"}, "files": {"image": COFFEE}}):
        response = client.post("/predict?top_k=1", **body)
        assert_problem(response, 422, "invalid_parameter", "top_k: given both in the query and in the body")


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/xml", "application/json-patch+json", "application/jsonx", "multipart/mixed", "x", ","],
)
def test_content_type(client: httpx.Client, content_type: str) -> None:
    response = client.post("/predict", content=COFFEE, headers={"content-type": content_type})
    assert_problem(response, 415, "unsupported_body", content_type, "multipart/form-data", "application/json")


@pytest.mark.parametrize(
    ("content_type", "body", "slug"),
    [
        ("multipart/form-data", FILE + b"--abc--\r\n", "malformed_body"),
        ("multipart/form-data; boundary=", FILE + b"--abc--\r\n", "malformed_body"),
        ("multipart/form-data; boundary=" + "x" * 5000, FILE + b"--abc--\r\n", "malformed_body"),
        ("multipart/form-data; boundary=other", FILE + b"--abc--\r\n", "malformed_body"),
        (FORM["content-type"], COFFEE, "malformed_body"),
        (FORM["content-type"], FILE, "malformed_body"),
        (FORM["content-type"], FILE[:300], "malformed_body"),
        (FORM["content-type"], FILE + FILE[:300], "malformed_body"),
        (FORM["content-type"], FILE.replace(b"\r\n", b"\n", 3) + b"--abc--\n", "malformed_body"),
        (FORM["content-type"], b"--abc\r\n\r\nx\r\n--abc--\r\n", "malformed_body"),
        (FORM["content-type"], part('filename="x"', b"x") + b"--abc--\r\n", "malformed_body"),
        (FORM["content-type"], FILE + part('name="top_k"', b"1" * 70_000) + b"--abc--\r\n", "malformed_body"),
        (FORM["content-type"], FILE + part('name="a"', b"1") * 65 + b"--abc--\r\n", "malformed_body"),
        (FORM["content-type"], b"--abc--\r\n", "missing_image"),
        (FORM["content-type"], part('name="image"', b"no file") + b"--abc--\r\n", "missing_image"),
    ],
)
def test_broken_form(client: httpx.Client, content_type: str, body: bytes, slug: str) -> None:
    assert_problem(client.post("/predict", content=body, headers={"content-type": content_type}), 400, slug)


def test_form_field_given_twice(client: httpx.Client) -> None:
    body = FILE + part('name="top_k"', b"1") * 2 + b"--abc--\r\n"
    response = client.post("/predict", content=body, headers=FORM)
    assert_problem(response, 422, "invalid_parameter", "'top_k' is given more than once")


@pytest.mark.parametrize(
    ("method", "path", "status", "slug", "says"),
    [
        ("GET", "/nowhere", 404, "not_found", "/nowhere"),
        ("GET", "/models/nonesuch", 404, "model_not_found", MODEL),
        ("GET", f"/models/{MODEL}?version=7", 404, "version_not_found", "served are: 1"),
        ("GET", "/models/..%2f..%2fetc%2fpasswd", 404, "not_found", "/docs"),
        ("GET", "/predict", 405, "method_not_allowed", "POST"),
        ("DELETE", "/models", 405, "method_not_allowed", "GET"),
        ("POST", "/metrics", 405, "method_not_allowed", "GET"),
        ("POST", "/livez", 405, "method_not_allowed", "GET, HEAD"),
        ("PUT", "/routing", 405, "method_not_allowed", "GET, POST"),
        ("POST", f"/models/{MODEL}/aliases/a", 405, "method_not_allowed", "PUT, DELETE"),
    ],
)
def test_wrong_address(client: httpx.Client, method: str, path: str, status: int, slug: str, says: str) -> None:
    response = client.request(method, path)
    assert_problem(response, status, slug, says)
    if status == 405:
        assert response.headers["allow"] == says


def test_line_breaks_in_a_path_forge_no_line_of_the_log(server: Server, client: httpx.Client) -> None:
    assert client.get("/x%0aforged%0d%0a").status_code == 404
    wait_for(lambda: "/x%0Aforged" in server.log)
    assert "\nforged" not in server.log


def test_hostile_host_header(server: Server) -> None:
    with new_client(server.url) as other:  # whose connection ends
        assert_problem(other.get("/nowhere", headers={"host": "["}), 400, "malformed_request", "The Host header")


def test_bad_images_among_good_ones(client: httpx.Client, cat: bytes, answer: int) -> None:
    other = top(client.post("/predict", content=cat))
    assert other != answer
    images = [COFFEE, b"no image", cat, COFFEE[:2000], b"", COFFEE]
    files = [("image", (f"{i}.jpg", image)) for i, image in enumerate(images)]
    response = client.post("/predict?top_k=1", files=files)
    assert response.status_code == 200
    entries: list[dict[str, Any]] = response.json()["predictions"]
    assert [entry["filename"] for entry in entries] == [f"{i}.jpg" for i in range(6)]
    for place, (status, slug) in {
        1: (415, "unsupported_image"),
        3: (422, "corrupt_image"),
        4: (400, "missing_image"),
    }.items():
        error = entries[place].pop("error")
        assert (error["status"], error["slug"]) == (status, slug)
        assert set(error) == {"type", "title", "status", "detail", "slug"}
        assert set(entries[place]) == {"id", "filename"}
    assert [entries[place]["classes"][0]["index"] for place in (0, 2, 5)] == [answer, other, answer]


def test_only_bad_images_are_still_one_entry_each(client: httpx.Client) -> None:
    response = client.post("/predict", files=[("image", ("a", b"x")), ("image", ("b", b"y"))])
    assert response.status_code == 200
    assert [entry["error"]["slug"] for entry in response.json()["predictions"]] == ["unsupported_image"] * 2


@pytest.mark.parametrize("sent", [1.0, 0.5, 0.0], ids=["whole request", "half of the body", "headers only"])
def test_clients_that_go_away_harm_nobody(server: Server, answer: int, sent: float) -> None:
    """They close the connection with the answer, or the rest of the request, outstanding."""
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(COFFEE)}\r\n\r\n".encode()

    def go_away(_: int) -> None:
        with socket.create_connection(server.address) as connected:
            connected.sendall(head + COFFEE[: int(len(COFFEE) * sent)])

    def stay(other: httpx.Client) -> int:
        return top(other.post("/predict", content=COFFEE))

    def booked(*codes: int) -> float:
        labels = {"front": "native", "route": "/predict", "method": "POST"}
        found = server.metrics()
        return sum(found.get(sample_name("condconv_requests_total", code=code, **labels), 0) for code in codes)

    gone, all_before = booked(499), booked(200, 499)
    with new_client(server.url, connections=8) as other, ThreadPoolExecutor(16) as pool:
        leaving = [pool.submit(go_away, i) for i in range(8)]
        staying = [pool.submit(stay, other) for _ in range(8)]
        assert [future.result() for future in staying] == [answer] * 8
        for future in leaving:
            future.result()
    # Whole requests may be answered before anybody notices that their clients have gone.
    wait_for(lambda: booked(200, 499) == all_before + 16)
    if sent < 1:
        assert booked(499) == gone + 8
    wait_for(lambda: server.metrics()["condconv_queue_rows"] == 0)
    wait_for(lambda: server.metrics()["condconv_rows_in_flight"] == 0)
    assert "unexpected error" not in server.log
