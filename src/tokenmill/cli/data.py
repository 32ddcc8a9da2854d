"""``tokenmill data``: look at training data as the model will see it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tokenmill.cli.output import Json, emit, verb
from tokenmill.core.errors import UsageError
from tokenmill.core.terminal import clean

if TYPE_CHECKING:
    from rich.text import Text

    from tokenmill.data.show import ShownRow

app = verb()

_SHOW_EPILOG = """\b
Examples:
  tokenmill data show chats.jsonl --model smollm2:135m
  tokenmill data show chats.jsonl --line 17 --train-on last
"""


@app.callback()
def _data() -> None:
    """Look at training data."""


@app.command(epilog=_SHOW_EPILOG)
def show(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A data file, a folder or a pattern.")],
    model: Annotated[
        str, typer.Option("--model", help="Whose tokenizer and chat template: a name, folder or file.")
    ] = "smollm2:135m",
    rows: Annotated[int, typer.Option(min=1, help="How many examples.")] = 3,
    line: Annotated[int | None, typer.Option(min=1, help="Only the row at this line.")] = None,
    train_on: Annotated[
        str, typer.Option(metavar="auto|all|assistant|last", help="Which tokens are learned (data.train_on).")
    ] = "auto",
    prompts: Annotated[
        str, typer.Option(metavar="auto|chat|text", help="What prompt and completion are (data.prompts).")
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Show rows as tokens: which are learned, and where each begins. Learned tokens are green, or stand in ⟦ ⟧."""
    from pydantic import ValidationError

    from tokenmill.config.parts import DataConfig
    from tokenmill.data.render import Renderer
    from tokenmill.data.show import show_rows
    from tokenmill.models.load import load_tokenizer
    from tokenmill.store import Store

    try:
        config = DataConfig.model_validate({"path": file, "train_on": train_on, "prompts": prompts})
    except ValidationError as error:
        raise UsageError("; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors())) from error
    tokenizer = load_tokenizer(Store().resolve(model, pull=True).path)
    renderer = Renderer(tokenizer, train_on=config.train_on, prompts=config.prompts)
    shown = list(show_rows(config, renderer, limit=rows, line=line))
    if not shown:
        raise UsageError(f"{file} has no row" + (f" at line {line}" if line is not None else ""))
    if as_json:
        emit({"model": model, "rows": [row.as_dict() for row in shown]}, True, "")
    elif sys.stdout.isatty():
        _print_coloured(shown)
    else:
        print("\n\n".join(f"{_title(row)}\n{_marked(row)}" for row in shown))


def _title(row: ShownRow) -> str:
    if row.problem is not None:
        return f"{row.file}:{row.line}"
    return f"{row.file}:{row.line}: {len(row.tokens)} tokens, {row.learned} learned"


def _marked(row: ShownRow) -> str:
    """Plain text: ⟦ ⟧ around what is learned, · between tokens."""
    if row.problem is not None:
        return clean(row.problem)
    parts: list[str] = []
    inside = False
    for number, token in enumerate(row.tokens):
        if token.learned != inside:
            parts.append("⟦" if token.learned else "⟧")
        elif number:
            parts.append("·")
        inside = token.learned
        parts.append(clean(token.text))
    return "".join(parts) + ("⟧" if inside else "")


def _print_coloured(rows: list[ShownRow]) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    for row in rows:
        console.print(_title(row), style="bold")
        console.print(_coloured(row))
        console.print()


def _coloured(row: ShownRow) -> Text:
    """Learned tokens green, others grey, control tokens in bold; neighbours in two shades show where each begins."""
    from rich.text import Text

    if row.problem is not None:
        return Text(clean(row.problem), style="red")
    text = Text()
    for number, token in enumerate(row.tokens):
        shade = ("green", "bright_green") if token.learned else ("bright_black", "white")
        style = shade[number % 2] + (" bold" if token.special else "")
        text.append(clean(token.text).replace("\n", "↵\n"), style=style)
    return text
