"""The browser page as it is served: what a browser needs of it before any script runs."""

from __future__ import annotations

import re
from hashlib import sha256

import httpx
import pytest

from condconv_serve.domain import Classification
from condconv_serve.errors import InferenceFailed
from condconv_serve.fronts.keys import ApiKey, KeyRing
from condconv_serve.fronts.native import page
from condconv_serve.samples import SAMPLES
from tests.unit.fronts.native.application import application, connect

FILES = sorted(name for name in page.assets() if name != page.PAGE)
TEXTS = {path.name: path.read_text() for path in page.DIRECTORY.iterdir() if path.is_file()}


async def answer() -> Classification:
    raise InferenceFailed("Not needed here.")


APP, _ = application(answer)


async def ask(path: str, method: str = "GET", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with connect(APP) as client:
        return await client.request(method, path, headers=named)


async def test_page_has_a_strict_policy() -> None:
    response = await ask("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob: data:",
        "connect-src": "'self'",
        "form-action": "'none'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    for name, value in (("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer")):
        assert response.headers[name] == value


@pytest.mark.parametrize("name", FILES)
async def test_files(name: str) -> None:
    response = await ask(f"/web/{name}")
    assert response.status_code == 200
    kind = name.rpartition(".")[2]
    expected = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "jpg": "image/jpeg"}[kind]
    assert response.headers["content-type"].partition(";")[0] == expected
    assert response.content == page.assets()[name].content


@pytest.mark.parametrize("path", ["/", "/web/app.js", "/web/samples/coffee.jpg"])
async def test_head_and_unchanged(path: str) -> None:
    whole = await ask(path)
    head = await ask(path, "HEAD")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    etag = whole.headers["etag"]
    assert etag == f'"{sha256(whole.content).hexdigest()[:32]}"'
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        unchanged = await ask(path, If_None_Match=known)
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["etag"] == etag
        assert unchanged.headers["content-security-policy"] == page.CONTENT_SECURITY_POLICY
    assert (await ask(path, If_None_Match='"other"')).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/web/",
        "/web/none.js",
        "/web/index.html",
        "/web/samples/",
        "/web/samples/none.jpg",
        "/web/samples/README.md",
        "/web/../settings.py",
        "/web/%2e%2e/settings.py",
        "/web/..%2fsettings.py",
        "/web//etc/passwd",
    ],
)
async def test_nothing_else(path: str) -> None:
    response = await ask(path)
    assert (response.status_code, response.json()["slug"]) == (404, "not_found")


async def test_page_only_reads() -> None:
    response = await ask("/", "POST")
    assert (response.status_code, response.json()["slug"]) == (405, "method_not_allowed")


async def test_page_is_for_everybody_but_what_it_shows_is_not() -> None:
    keys = KeyRing([ApiKey(name="a", scopes=("predict",), sha256=sha256(b"secret").hexdigest())])
    app, _ = application(answer, keys=keys)
    async with connect(app) as client:
        for path in ("/", *(f"/web/{name}" for name in FILES)):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/models")).status_code == 401


def test_page_needs_no_document_of_the_interface() -> None:
    assert not [path for path in APP.openapi()["paths"] if path == "/" or path.startswith("/web")]


def test_all_that_is_referred_to_is_there() -> None:
    html = TEXTS[page.PAGE]
    referred = set(re.findall(r'(?:src|href)="web/([^"]+)"', html))
    assert {"app.js", "style.css", "icon.svg"} < referred
    samples = set(re.findall(r'data-sample="([^"]+)"', html))
    assert samples == {path.name for path in SAMPLES}
    assert {f"samples/{name}" for name in samples} < referred
    for name, text in TEXTS.items():
        if name.endswith(".js"):
            modules = set(re.findall(r'from "\./([^"]+)"', text))
            assert modules | {name} <= set(TEXTS), name
            referred |= modules
    assert referred == set(FILES), "each file is used, and each used one is there"


def test_elements_that_scripts_look_for_are_there() -> None:
    ids = re.findall(r' id="([^"]+)"', TEXTS[page.PAGE])
    assert len(ids) == len(set(ids))
    for name, text in TEXTS.items():
        if name.endswith(".js"):
            assert set(re.findall(r'byId\("([^"]+)"\)', text)) <= set(ids), name


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    html = TEXTS[page.PAGE]
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", html)
    assert re.findall(r"<script(?![^>]* src=)", html) == []
    for name, text in TEXTS.items():
        addresses = set(
            re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]{2,}[^\s\"']*", re.sub(r"^\s*//.*$", "", text, flags=re.M))
        )
        assert addresses <= {"http://www.w3.org/2000/svg", "//www.w3.org/2000/svg"}, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), name
