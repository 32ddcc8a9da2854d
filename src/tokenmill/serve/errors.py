"""Errors on their way to a client: which HTTP status each has, and those that only a server knows.

The protocols share this table and differ in the body that they write. Whatever is outside TokenmillError is a fault of
ours: the guard in ``app`` answers it with 500 and without its text, which may name files or prompts.
"""

from __future__ import annotations

from typing import Any

from fastapi.exceptions import RequestValidationError

from tokenmill.core.errors import (
    ConfigError,
    NetworkError,
    NotFoundError,
    StoreError,
    TemplateError,
    TokenmillError,
    UsageError,
)
from tokenmill.engine.scheduler import DeadlineError, QueueFullError

RETRY_AFTER_S = 1


class HTTPError(TokenmillError):
    """A refusal that has its own status: a missing key, a body too large, a route that is not there."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class FieldError(UsageError):
    """A field of a request is wrong or cannot be honoured; ``param`` names it."""

    def __init__(self, param: str, message: str) -> None:
        self.param = param
        super().__init__(f"{param}: {message}" if param else message)


class UnavailableError(TokenmillError):
    """The server or the model is going away; another try, or another server, may do."""


class BrokenModelError(TokenmillError):
    """A model's files cannot be used. The client is told which model; the log alone names files of this machine."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the files of model {name!r} cannot be used; the server's log says why")


_STATUS: tuple[tuple[type[TokenmillError], int], ...] = (
    (NotFoundError, 404),
    (QueueFullError, 429),
    (DeadlineError, 504),
    (UnavailableError, 503),
    (NetworkError, 502),
    (UsageError, 400),  # OutOfContextError too
    (ConfigError, 400),
    (TemplateError, 400),
    (StoreError, 400),  # a name outside the grammar, a path where only names are taken
)


def status_of(error: Exception) -> int:
    """The HTTP status of an error; 500 for what is not the client's doing."""
    if isinstance(error, HTTPError):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def headers_of(error: Exception) -> dict[str, str]:
    """``Retry-After`` where trying again makes sense, ``WWW-Authenticate`` where a key is missing."""
    status = status_of(error)
    if status in (429, 503):
        return {"retry-after": str(RETRY_AFTER_S)}
    return {"www-authenticate": "Bearer"} if status == 401 else {}


def usage_error(error: RequestValidationError) -> FieldError:
    """What pydantic found wrong with a request, all of it in one message that names the fields."""
    problems = list(dict.fromkeys(map(_problem, error.errors()))) or [("", "the request is not valid")]
    (param, first), *rest = problems
    more = [f"{where}: {message}" if where else message for where, message in rest]
    return FieldError(param, "; ".join([first, *more]))


def _problem(found: dict[str, Any]) -> tuple[str, str]:
    """Where it is, and what."""
    where = [str(part) for part in found["loc"] if part != "body"]
    if found["type"] == "json_invalid":
        return "", f"the body is not JSON: {found.get('ctx', {}).get('error', 'it breaks off')}"
    if found["type"] == "refused":  # a protocol's own check, which names the field itself
        return ".".join([*where, found["ctx"]["param"]]), found["ctx"]["why"]
    if not where and found["type"] in ("missing", "model_attributes_type"):
        return "", "the body has to be a JSON object"
    message = str(found["msg"]).removeprefix("Value error, ")
    if found["type"] == "extra_forbidden":
        message = "this field is not supported"
    return ".".join(where), message
