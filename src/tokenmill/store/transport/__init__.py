"""HTTP for pulls and pushes: who may be contacted (`trust`), requests (`client`), resumable downloads (`transfer`)."""

from __future__ import annotations

from tokenmill.store.transport.client import Body, Client, DeniedError, Reply, Transient, retry_after_s
from tokenmill.store.transport.transfer import Received, Throttle, check_space, discard, download
from tokenmill.store.transport.trust import Trust, shown

__all__ = [
    "Body",
    "Client",
    "DeniedError",
    "Received",
    "Reply",
    "Throttle",
    "Transient",
    "Trust",
    "check_space",
    "discard",
    "download",
    "retry_after_s",
    "shown",
]
