"""The page at ``/``: a chat for whoever opens the server in a browser.

Programs get what Ollama says there; a browser, which asks for HTML, gets the page. Its parts are plain files beside
this one, the same for everybody and without anything to hide, so they need no key: the page asks for the key itself.
The policy that comes with them lets it load nothing from elsewhere and run nothing but its own scripts.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from tokenmill.serve.description import Responses, refusals
from tokenmill.serve.errors import HTTPError
from tokenmill.serve.ollama import ALIVE, shapes

router = APIRouter(responses=refusals(shapes.Error))
PARTS = {
    "page.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "chat.js": "text/javascript; charset=utf-8",
    "markdown.js": "text/javascript; charset=utf-8",
}
FOLDER = "/web/"
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "vary": "accept",
    "x-content-type-options": "nosniff",
}
"""Of every page of ours: it loads nothing from elsewhere and runs nothing but its own scripts."""
_TEXT = {"schema": {"type": "string"}}
_BOTH: Responses = {200: {"content": dict.fromkeys(("text/plain", "text/html"), _TEXT), "description": "It runs."}}


def wants_page(method: str, path: str, accept: str) -> bool:
    """Whether a request is for the page or a part of it."""
    if method not in ("GET", "HEAD"):
        return False
    return path.startswith(FOLDER) or (path == "/" and "text/html" in accept.lower())


@router.head("/", response_class=Response, responses=_BOTH)
@router.get("/", response_class=Response, responses=_BOTH)
async def root(request: Request) -> Response:
    """The page for a browser, and for programs whether anybody is there."""
    if wants_page(request.method, "/", request.headers.get("accept", "")):
        return _part("page.html")
    return PlainTextResponse(ALIVE, headers={"vary": "accept"})


@router.get("/web/{name}", include_in_schema=False)
async def part(name: str) -> Response:
    """A part of the page."""
    if name not in PARTS:
        raise HTTPError(404, f"the page has no part {name[:60]!r}")
    return _part(name)


def _part(name: str) -> Response:
    content = files(__name__).joinpath(name).read_bytes()
    return Response(content, media_type=PARTS[name], headers=HEADERS)
