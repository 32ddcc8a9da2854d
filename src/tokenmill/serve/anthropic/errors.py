"""Errors in Anthropic's shape."""

from __future__ import annotations

from typing import Any

from tokenmill.serve.errors import status_of

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(error: Exception) -> dict[str, Any]:
    """``{"type": "error", "error": {"type", "message"}}``."""
    status = status_of(error)
    kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)}}
