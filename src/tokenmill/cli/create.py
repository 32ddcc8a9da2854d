"""``tokenmill create``: a model from a Modelfile (FROM, PARAMETER, TEMPLATE, SYSTEM, ADAPTER, LICENSE, MESSAGE)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tokenmill.cli.output import Json, PullProgress, emit, summary, verb
from tokenmill.core.errors import UsageError
from tokenmill.store import Store
from tokenmill.text.any_template import check_template

app = verb()

EPILOG = """\b
Examples:
  tokenmill create pirate -f Modelfile
  echo 'FROM smollm2:135m' | tokenmill create copy -f -
"""


def _read(file: str) -> tuple[str, Path]:
    """The Modelfile's text and the folder that its relative paths start from. ``-`` is standard input."""
    try:
        if file == "-":
            return sys.stdin.read(), Path.cwd()
        return Path(file).read_text(encoding="utf-8"), Path(file).resolve().parent
    except FileNotFoundError:
        raise UsageError(f"no Modelfile at {file!r}: give its path with -f, or - for standard input") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: a Modelfile is UTF-8 text; byte {error.start} is not") from None


@app.command(epilog=EPILOG)
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new model's name.")],
    file: Annotated[str, typer.Option("--file", "-f", help="The Modelfile; - is standard input.")] = "Modelfile",
    as_json: Json = False,
) -> None:
    """Make a model from a Modelfile."""
    text, base_dir = _read(file)
    with PullProgress() as progress:
        files = Store().create(name, text, base_dir, progress, check_template=check_template)
    emit({"status": "success", **summary(files)}, as_json, f"created {files.name}")
