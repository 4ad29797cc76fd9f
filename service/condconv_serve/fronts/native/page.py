"""The browser page: `/`, and its files below `/web/`."""

from __future__ import annotations

import mimetypes
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response

from condconv_serve.samples import SAMPLES

DIRECTORY = Path(__file__).parents[2] / "web"
PAGE = "index.html"
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
"""Nothing from other servers and nothing inline, so even a label with markup in it can't run."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent."""

    content: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path, *, base: str = "") -> Asset:
        """Read a file and name its content; `base` becomes an HTML file's base of relative addresses."""
        content = path.read_bytes()
        if base and path.suffix == ".html":
            content = content.replace(b"<head>", f'<head>\n<base href="{base}">'.encode(), 1)
        media_type = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return cls(content, media_type, f'"{sha256(content).hexdigest()[:32]}"')


def assets(root_path: str = "") -> dict[str, Asset]:
    """All files of the page by name, the sample photographs as `samples/<name>`.

    All that the page refers to is relative. Under a prefix the page says what to: a proxy that takes off the prefix
    makes `/prefix` and `/prefix/` the same for us, but not for a browser.
    """
    files = {path.name: path for path in DIRECTORY.iterdir() if path.is_file() and path.suffix in (*_TYPES, ".svg")}
    files |= {f"samples/{path.name}": path for path in SAMPLES}
    base = f"{root_path}/" if root_path else ""
    return {name: Asset.read(path, base=base) for name, path in files.items()}


def router(root_path: str = "") -> APIRouter:
    """The routes of the page, which is reached under the prefix `root_path`.

    They are for everybody: the page holds no secrets, and asks for a key itself. Only names found at the start are
    answered, so no path leads out of the directory.
    """
    files = assets(root_path)
    policy = CONTENT_SECURITY_POLICY
    if root_path:  # the page has a base
        policy = policy.replace("base-uri 'none'", "base-uri 'self'")
    routes = APIRouter(include_in_schema=False)

    @routes.api_route("/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        return _answer(request, files[PAGE], policy)

    @routes.api_route("/web/{name:path}", methods=["GET", "HEAD"])
    async def asset(request: Request, name: str) -> Response:
        if name == PAGE or name not in files:
            raise HTTPException(404)
        return _answer(request, files[name], policy)

    return routes


def _answer(request: Request, asset: Asset, policy: str) -> Response:
    # Browsers ask each time, so a new version of the service never runs with old scripts.
    headers = {"ETag": asset.etag, "Cache-Control": "no-cache", "Content-Security-Policy": policy}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if asset.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)
