"""``tokenmill stop``: take a model out of a running server's memory. Answers that are being written are finished."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenmill.cli.output import Json, emit, verb

app = verb()

EPILOG = """\b
Examples:
  tokenmill stop smollm2:135m
"""


@app.command(epilog=EPILOG)
def stop(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model that `tokenmill ps` lists.")],
    as_json: Json = False,
) -> None:
    """Take a model out of a running server's memory."""
    from tokenmill.cli.remote import ask

    ask("POST", "/api/generate", {"model": name, "keep_alive": 0, "stream": False})
    emit({"stopped": name}, as_json, "")
