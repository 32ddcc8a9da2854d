"""The OpenAPI description: what every route takes and answers, refusals included.

Replies are written as plain JSON. The shapes that describe them are declared beside each protocol and not run on the
way out, where they would cost time at every token; the tests hold every reply to them instead.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from tokenmill.serve.replies import SSE

OPEN = ("/health", "/health/live")
Responses = dict[int | str, dict[str, Any]]
NEVER: list[Any] = [None, False, "", [], {}]
"""What the value of a refused field may be, for then it asks for nothing."""

_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
    "additionalProperties": False,
}
_REFUSALS = {
    400: "The request is wrong; the message names the field and what is allowed.",
    401: "A valid API key is needed.",
    403: "The caller may not do this.",
    404: "There is no such model.",
    408: "The body did not arrive.",
    413: "The body is larger than this server takes.",
    429: "Too many requests wait; try again after `Retry-After` seconds.",
    500: "A fault of the server's; its log has more under the request id.",
    502: "Another server, which models come from, failed.",
    503: "The server or the model is going away; try again after `Retry-After` seconds.",
    504: "The answer was not done before its deadline.",
}


class Shape(BaseModel):
    """Part of a reply. A field with a default is left out where there is nothing to say."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


def refusals(shape: type[BaseModel]) -> Responses:
    """Every refusal, in the shape of a protocol."""
    return {status: {"model": shape, "description": why} for status, why in _REFUSALS.items()}


def whole_or_streamed(shape: type[BaseModel], media_type: str, pieces: str) -> Responses:
    """An answer in one piece, or many as a stream of ``media_type``; ``pieces`` says what it consists of."""
    schema = _EVENT if media_type == SSE else {"type": "string"}
    stream = {"schema": {**schema, "description": pieces}}
    return {200: {"model": shape, "content": {media_type: stream}, "description": "The answer."}}


def plain(media_type: str, what: str) -> Responses:
    """A reply that is not JSON."""
    return {200: {"content": {media_type: {"schema": {"type": "string"}}}, "description": what}}


def describe(app: FastAPI, keys: bool) -> None:
    """Finish ``app``'s own description: ``keys`` are asked for, and mistakes are 400 in the protocols' shapes."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _finish(made(), keys)
        return made()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _finish(description: dict[str, Any], keys: bool) -> None:
    components = description["components"]
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            operation["responses"].pop("422", None)  # FastAPI's, for mistakes that we answer with 400
            if path in OPEN and keys:
                operation["security"] = []
            if method == "head":  # its replies have no body
                for reply in operation["responses"].values():
                    reply.pop("content", None)
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    if keys:
        bearer, header = {"type": "http", "scheme": "bearer"}, {"type": "apiKey", "in": "header", "name": "x-api-key"}
        components["securitySchemes"] = {"bearer": bearer, "x-api-key": header}
        description["security"] = [{"bearer": []}, {"x-api-key": []}]
