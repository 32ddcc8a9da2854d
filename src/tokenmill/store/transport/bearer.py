"""Tokens for a registry that answers 401 with a Bearer challenge, as the Docker registry's v2 API does.

``WWW-Authenticate: Bearer realm="https://auth.example/token",service="…",scope="repository:a/b:pull"`` asks the client
to fetch a token from the realm and to come back with it. The token is anonymous unless ``~/.netrc`` (or ``NETRC``) has
a login for the realm's host: each host gets its own credentials only. Ollama's own realm wants a request signed with an
ed25519 key for private models; that is not done here, and the registry's refusal is passed on.

Source: https://distribution.github.io/distribution/spec/auth/token/
"""

from __future__ import annotations

import base64
import json
import netrc
import os
import re
from pathlib import Path

import httpx

from tokenmill.core.errors import NetworkError, StoreError

_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
TOKEN_BYTES = 64 * 1024


def token_url(challenge: str) -> httpx.URL | None:
    """Where the `challenge` (a WWW-Authenticate header) says that a token is to be had; None if it names no address."""
    kind, _, rest = challenge.strip().partition(" ")
    if kind.lower() != "bearer":
        return None
    parameters = dict(_PARAMETER.findall(rest))
    try:
        url = httpx.URL(parameters.get("realm", ""))
    except httpx.InvalidURL:
        return None
    if not url.host:
        return None
    if service := parameters.get("service"):
        url = url.copy_add_param("service", service)
    for scope in parameters.get("scope", "").split():
        url = url.copy_add_param("scope", scope)
    return url


def login_header(host: str) -> dict[str, str]:
    """A Basic ``Authorization`` header from netrc's entry for `host`; empty when there is none."""
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    if not path.is_file():
        return {}
    try:
        entry = netrc.netrc(str(path)).authenticators(host)
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot be read for registry logins: {error}") from error
    if entry is None:
        return {}
    pair = f"{entry[0]}:{entry[2] or ''}".encode()
    return {"Authorization": "Basic " + base64.b64encode(pair).decode("ascii")}


def parse_token(body: bytes, url: httpx.URL) -> str:
    """The token in a token server's answer (``token`` or ``access_token``). Raises NetworkError if there is none."""
    try:
        answer = json.loads(body)
        token = answer.get("token") or answer.get("access_token")
    except (ValueError, AttributeError, RecursionError):
        token = None
    if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
        raise NetworkError(f"{url.host}: the token server's answer holds no token")
    return token
