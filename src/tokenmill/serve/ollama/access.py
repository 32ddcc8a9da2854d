"""Who may change what models this server has.

Pulling, pushing, creating, copying and removing over HTTP is for callers on this machine and for callers with a key
(the guard in ``app`` has checked it by then): a server that was opened to everyone with ``--insecure`` answers prompts,
and that is all.
"""

from __future__ import annotations

from fastapi import Request

from tokenmill.serve.errors import HTTPError
from tokenmill.serve.settings import is_loopback


def check_may_change(request: Request) -> None:
    """Raises HTTPError 403 for a stranger."""
    if request.app.state.settings.api_keys:
        return
    if request.client is None or not is_loopback(request.client.host):
        raise HTTPError(403, "models can be changed only from the server's own machine, or with an API key")
