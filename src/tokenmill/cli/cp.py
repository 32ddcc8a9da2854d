"""``tokenmill cp``: a second name for a model; no weights are copied."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenmill.cli.output import Json, emit, verb
from tokenmill.store import Store

app = verb()

EPILOG = """\b
Example:
  tokenmill cp smollm2:135m my-assistant
"""


@app.command(epilog=EPILOG)
def cp(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A model in the store.")],
    destination: Annotated[str, typer.Argument(metavar="DESTINATION", help="The new name.")],
    as_json: Json = False,
) -> None:
    """Give a model a second name."""
    Store().copy(source, destination)
    document = {"status": "success", "source": source, "destination": destination}
    emit(document, as_json, f"copied {source!r} to {destination!r}")
