"""``tokenmill rm``: remove models; blobs that no other name uses go with them, linked files of yours never do."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenmill.cli.output import Json, emit, verb
from tokenmill.store import Store

app = verb()

EPILOG = """\b
Examples:
  tokenmill rm my-assistant
  tokenmill rm one two three
"""


@app.command(epilog=EPILOG)
def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Models in the store.")], as_json: Json = False
) -> None:
    """Remove models from this machine."""
    store = Store()
    for name in names:
        store.remove(name)
        if not as_json:  # at once: where the next one is not there, it has to be seen that this one is gone
            emit(None, False, f"deleted {name!r}")
    emit({"status": "success", "removed": names}, as_json, "")
