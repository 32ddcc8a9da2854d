"""``tokenmill ps``: the models that a running server has in memory, in Ollama's columns."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tokenmill.cli.output import Json, columns, emit, human_duration, human_size, verb

app = verb()

EPILOG = """\b
Examples:
  tokenmill ps
  TOKENMILL_HOST=build-machine:11434 tokenmill ps --json
"""


@app.command(epilog=EPILOG)
def ps(as_json: Json = False) -> None:
    """List the models that a running server has in memory."""
    from tokenmill.cli.remote import ask

    answer = ask("GET", "/api/ps")
    emit(answer, as_json, table(answer["models"]))


def table(models: list[dict[str, Any]]) -> str:
    """NAME ID SIZE PROCESSOR CONTEXT UNTIL, one model a line."""
    header = ("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL")
    return columns(header, [_row(model) for model in models])


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    size, on_gpu = model["size"], model["size_vram"]
    gpu = round(100 * on_gpu / size) if size else 0
    processor = {0: "100% CPU", 100: "100% GPU"}.get(gpu, f"{100 - gpu}%/{gpu}% CPU/GPU")
    context = str(model.get("context_length", ""))
    return model["name"], model["digest"][:12] or "-", human_size(size), processor, context, _until(model["expires_at"])


def _until(text: str) -> str:
    """How long from now. Ollama writes a year far away for ever."""
    seconds = (datetime.fromisoformat(text) - datetime.now(UTC)).total_seconds()
    if seconds > 365 * 86400:
        return "Forever"
    return f"{human_duration(seconds)} from now" if seconds > 0 else "Stopping..."
