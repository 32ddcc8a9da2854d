"""Talks to a running server, for the verbs that ask it something.

``TOKENMILL_HOST`` says where it is (``host``, ``host:port`` or a URL; default 127.0.0.1:11434), ``TOKENMILL_API_KEY``
opens it. The routes are Ollama's, so an Ollama server answers too; ``run`` asks only a server of ours.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tokenmill.core.errors import NotFoundError, TokenmillError, UsageError

if TYPE_CHECKING:
    import httpx

DEFAULT_PORT = 11434
SILENCE_S = 600.0  # a long prompt on a slow machine takes minutes before the first word


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


def something_listens() -> bool:
    """Whether a server can be there at all. On this machine, without ``TOKENMILL_HOST``, that takes a millisecond."""
    if os.environ.get("TOKENMILL_HOST", "").strip():
        return True
    try:
        socket.create_connection(("127.0.0.1", DEFAULT_PORT), timeout=0.5).close()
    except OSError:
        return False
    return True


def is_ours(url: str) -> bool:
    """Whether a tokenmill server answers at `url` and takes requests now. Asks what needs no key."""
    import httpx

    try:
        reply = httpx.get(f"{url}/health", timeout=3, trust_env=False)
        return reply.json().get("ready") is True
    except (httpx.HTTPError, ValueError, AttributeError):
        return False


def ask(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON that the server answers; its errors become ours. A server that does not answer is named."""
    import httpx

    url = server_url()
    with _unreachable(url):
        reply = httpx.request(method, url + path, json=body, headers=_key(), timeout=60, trust_env=False)
        answer = reply.json()
    if reply.is_error:
        raise _problem(reply, answer)
    return answer


def lines(path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The objects of a stream, as they come. Closing it ends the server's work."""
    import httpx

    url, timeout = server_url(), httpx.Timeout(10, read=SILENCE_S)
    with (
        _unreachable(url),
        httpx.stream("POST", url + path, json=body, headers=_key(), timeout=timeout, trust_env=False) as reply,
    ):
        if reply.is_error:
            raise _problem(reply, json.loads(reply.read()))
        for line in reply.iter_lines():
            said = json.loads(line)
            if "error" in said:
                raise TokenmillError(str(said["error"]))
            yield said


def _key() -> dict[str, str]:
    keys = os.environ.get("TOKENMILL_API_KEY", "").split()
    return {"authorization": f"Bearer {keys[0]}"} if keys else {}


@contextmanager
def _unreachable(url: str) -> Iterator[None]:
    import httpx

    try:
        yield
    except TokenmillError:  # UsageError is a ValueError too
        raise
    except httpx.HTTPError as error:
        raise TokenmillError(f"no server answers at {url} ({error}); start one with `tokenmill serve`") from None
    except ValueError:  # no JSON
        raise TokenmillError(
            f"what answers at {url} is no server of models; TOKENMILL_HOST says where one is, "
            "`tokenmill serve` starts one"
        ) from None


def _problem(reply: httpx.Response, answer: Any) -> TokenmillError:
    problem = answer.get("error", answer) if isinstance(answer, dict) else answer
    kind = {400: UsageError, 404: NotFoundError}.get(reply.status_code, TokenmillError)
    return kind(str(problem.get("message", problem) if isinstance(problem, dict) else problem))
