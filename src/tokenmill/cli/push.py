"""``tokenmill push``: send a model to a registry that speaks Ollama's protocol, or to a repository of the hub."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenmill.cli.output import Json, PullProgress, emit, verb
from tokenmill.store import Store

app = verb()

EPILOG = """\b
Examples:
  tokenmill push my-assistant ollama:registry.example.org/me/my-assistant:latest
  tokenmill push ./my-model hf:me/my-model
"""


@app.command(epilog=EPILOG)
def push(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model in the store, or a folder (./DIR).")],
    destination: Annotated[
        str | None, typer.Argument(metavar="DESTINATION", help="ollama:… or hf:…; by default where its name points.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Send a model to a registry or to the hub, where a push that broke off goes on with what is missing."""
    with PullProgress() as progress:
        Store().push(name, destination, progress)
    emit({"status": "success", "name": name, "destination": destination or name}, as_json, f"pushed {name}")
