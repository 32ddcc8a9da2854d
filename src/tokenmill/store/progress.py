"""How long work reports where it stands: the fields of Ollama's pull stream, so that a server can pass them on."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called from the thread that does the work; must be quick and must not raise unless the work is to be stopped."""

    def __call__(
        self, status: str, digest: str | None = None, total: int | None = None, completed: int | None = None
    ) -> None:
        """`status` is for the person; `digest` names the file; `total` and `completed` are bytes."""


def silent(status: str, digest: str | None = None, total: int | None = None, completed: int | None = None) -> None:
    """The progress of someone who does not want to know."""
