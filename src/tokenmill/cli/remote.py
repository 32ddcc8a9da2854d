"""Talks to a running server, for the verbs that ask it something.

``TOKENMILL_HOST`` says where it is (``host``, ``host:port`` or a URL; default 127.0.0.1:11434), ``TOKENMILL_API_KEY``
opens it. The routes are Ollama's, so an Ollama server answers too.
"""

from __future__ import annotations

import os
from typing import Any

from tokenmill.core.errors import NotFoundError, TokenmillError, UsageError

DEFAULT_PORT = 11434


def server_url() -> str:
    """The address of the server that is meant, without a slash at its end."""
    import httpx

    given = os.environ.get("TOKENMILL_HOST", "").strip() or "127.0.0.1"
    try:
        url = httpx.URL(given if "://" in given else f"http://{given}")
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError(f"TOKENMILL_HOST is {given!r}; give a host, host:port or an http(s) URL")
    if url.port is None and "://" not in given:
        url = url.copy_with(port=DEFAULT_PORT)
    return str(url.copy_with(host="127.0.0.1" if url.host == "0.0.0.0" else url.host)).rstrip("/")


def ask(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON that the server answers; its errors become ours. A server that does not answer is named."""
    import httpx

    url, key = server_url(), os.environ.get("TOKENMILL_API_KEY", "").split()
    headers = {"authorization": f"Bearer {key[0]}"} if key else {}
    try:
        reply = httpx.request(method, url + path, json=body, headers=headers, timeout=60, trust_env=False)
        answer = reply.json()
    except (httpx.HTTPError, ValueError) as error:
        raise TokenmillError(f"no server answers at {url} ({error}); start one with `tokenmill serve`") from None
    if reply.is_error:
        problem = answer.get("error", answer) if isinstance(answer, dict) else answer
        raise (NotFoundError if reply.status_code == 404 else TokenmillError)(str(problem))
    return answer
