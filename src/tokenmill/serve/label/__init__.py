"""The page on which people compare answers: one program, one file of items, one file of verdicts.

Everything lies below a path that holds a secret, which only whoever started it knows: a page of another site, or
another user of the network, cannot guess where to ask.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, Literal

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from tokenmill.align.label import Item, LabelLog, agreement, position_bias
from tokenmill.align.label.log import new_label
from tokenmill.core.errors import TokenmillError
from tokenmill.serve.web import HEADERS

PARTS = {
    "": ("page.html", "text/html; charset=utf-8"),
    "label.css": ("label.css", "text/css; charset=utf-8"),
    "label.js": ("label.js", "text/javascript; charset=utf-8"),
}


class Verdict(BaseModel):
    """What the page sends: the side that was chosen, as it was shown."""

    model_config = ConfigDict(extra="forbid")
    item: str = Field(max_length=64)
    rater: str = Field(min_length=1, max_length=64)
    verdict: Literal["left", "right", "tie", "skip"]
    seconds: float = Field(0.0, ge=0, le=1e7, allow_inf_nan=False)


def create_app(items: Sequence[Item], log: LabelLog, *, seed: int = 0, secret: str) -> FastAPI:
    """The application; every route is below ``/<secret>/``."""
    known = {item.id: item for item in items}
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    routes = APIRouter(prefix=f"/{secret}")

    @routes.get("/")
    def page() -> Response:
        return _part("")

    @routes.get("/parts/{name}")
    def part(name: str) -> Response:
        return _part(name) if name else Response(status_code=404)

    @routes.get("/next")
    def following(rater: str) -> JSONResponse:
        """The next item that this rater has not judged."""
        done = log.done(rater)
        left = [item for item in items if item.id not in done]
        progress = {"done": len(items) - len(left), "of": len(items)}
        return JSONResponse({**progress, "item": _shown(left[0], rater, seed) if left else None}, headers=HEADERS)

    @routes.post("/verdict")
    def verdict(said: Verdict) -> JSONResponse:
        """Write a verdict down."""
        item = known.get(said.item)
        if item is None:
            return JSONResponse({"error": "no such item"}, 404, headers=HEADERS)
        left = item.left(said.rater, seed)
        sides = {"left": ("first", "second")[left], "right": ("second", "first")[left]}
        log.add(new_label(item, said.rater, sides.get(said.verdict, said.verdict), left, said.seconds))
        return JSONResponse({"saved": True}, headers=HEADERS)

    @routes.get("/measures")
    def measures() -> JSONResponse:
        """Agreement and position bias so far."""
        return JSONResponse(measures_of(log), headers=HEADERS)

    app.include_router(routes)
    return app


def measures_of(log: LabelLog) -> dict[str, Any]:
    """Agreement, position bias and counts of a file of verdicts, as plain values."""
    labels = log.labels
    verdicts = {kind: sum(label.verdict == kind for label in labels) for kind in ("first", "second", "tie", "skip")}
    return {
        "labels": len(labels),
        "verdicts": verdicts,
        "agreement": agreement(labels).__dict__,
        "position": position_bias(labels).__dict__,
    }


def serve_labels(
    items: Sequence[Item], log: LabelLog, *, host: str, port: int, seed: int, on_ready: Callable[[str], None]
) -> None:
    """Serve the page until Ctrl-C. ``on_ready`` is told its address, secret included."""
    import uvicorn

    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise TokenmillError(f"cannot listen on {host} port {port}: {error}; --port takes another") from None
    secret = secrets.token_urlsafe(16)
    app = create_app(items, log, seed=seed, secret=secret)
    shown = f"[{host}]" if ":" in host else host
    with listener:
        on_ready(f"http://{shown}:{listener.getsockname()[1]}/{secret}/")
        # no access log: it would hold the secret
        uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")).run([listener])


def _shown(item: Item, rater: str, seed: int) -> dict[str, Any]:
    left = item.left(rater, seed)
    return {"id": item.id, "prompt": item.prompt, "left": item.answers[left], "right": item.answers[1 - left]}


def _part(name: str) -> Response:
    if name not in PARTS:
        return Response(status_code=404)
    file, kind = PARTS[name]
    return Response(files(__name__).joinpath(file).read_bytes(), media_type=kind, headers=HEADERS)
