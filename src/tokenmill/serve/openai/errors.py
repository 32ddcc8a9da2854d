"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``.

``code`` is what programs look at: ``context_length_exceeded``, ``model_not_found``, ``invalid_api_key``,
``queue_full``. A fault of ours says only that there was one.
"""

from __future__ import annotations

from typing import Any

from fastapi.exceptions import RequestValidationError

from tokenmill.core.errors import NotFoundError, OutOfContextError, TokenmillError
from tokenmill.engine.scheduler import QueueFullError
from tokenmill.serve.errors import FieldError, status_of, usage_error

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
_CODES: tuple[tuple[type[Exception], str], ...] = (
    (OutOfContextError, "context_length_exceeded"),
    (NotFoundError, "model_not_found"),
    (QueueFullError, "queue_full"),
)


def error_body(error: Exception) -> dict[str, Any]:
    """The JSON body for any error that ends a request."""
    if isinstance(error, RequestValidationError):
        error = usage_error(error)
    param = (error.param or None) if isinstance(error, FieldError) else None
    status = status_of(error)
    known = isinstance(error, TokenmillError)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    code = next((code for of, code in _CODES if isinstance(error, of)), "invalid_api_key" if status == 401 else None)
    if isinstance(error, NotFoundError):
        param = "model"
    message = str(error) if known else "the server failed on this request; its log says why"
    return {"error": {"message": _clean(message), "type": kind, "param": param and _clean(param), "code": code}}


def _clean(text: str) -> str:
    """Without halves of surrogate pairs, which an error can quote from a request and no reply can carry."""
    return text.encode("utf-8", "replace").decode()
