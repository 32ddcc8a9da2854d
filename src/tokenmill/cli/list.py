"""``tokenmill list``: what the store holds, in Ollama's columns."""

from __future__ import annotations

from tokenmill.cli.output import Json, columns, emit, human_age, human_size, summary, verb
from tokenmill.store import ModelFiles, Store

app = verb()

EPILOG = """\b
Examples:
  tokenmill list
  tokenmill list --json
"""


def table(models: list[ModelFiles]) -> str:
    """NAME ID SIZE MODIFIED, one model a line."""
    rows = [(m.name, m.digest[:12] or "-", human_size(m.size), human_age(m.modified)) for m in models]
    return columns(("NAME", "ID", "SIZE", "MODIFIED"), rows)


@app.command(epilog=EPILOG)
def list_models(as_json: Json = False) -> None:
    """List the models on this machine."""
    models = Store().list()
    emit({"models": [summary(model) for model in models]}, as_json, table(models))
