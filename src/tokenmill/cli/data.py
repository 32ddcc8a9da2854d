"""``tokenmill data``: make training data out of raw text, and look at it as the model will see it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli import data_constitution, data_mix
from tokenmill.cli.classifier import app as classifier
from tokenmill.cli.data_tools import app as tools
from tokenmill.cli.output import Json, columns, emit, human_duration, human_size, verb
from tokenmill.core.errors import UsageError
from tokenmill.core.terminal import clean

if TYPE_CHECKING:
    from rich.text import Text

    from tokenmill.data.curate.pipeline import Curated
    from tokenmill.data.show import ShownRow

app = verb()
app.add_typer(classifier, name="classifier")
app.add_typer(tools, name="tools")
app.command("mix", epilog=data_mix.EPILOG)(data_mix.mix)
app.command("constitution", epilog=data_constitution.EPILOG)(data_constitution.constitution)

_SHOW_EPILOG = """\b
Examples:
  tokenmill data show chats.jsonl --model smollm2:135m
  tokenmill data show chats.jsonl --line 17 --train-on last
"""


_RUN_EPILOG = """\b
Examples:
  tokenmill data run web input=raw/ output=curated
  tokenmill data run mine.yaml steps.gopher.min_words=20 workers=4
"""


@app.callback()
def _data() -> None:
    """Make training data, and look at it."""


@app.command(epilog=_RUN_EPILOG)
def run(
    words: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE [KEY=VALUE...]", help="A recipe's name or .yaml file, then what is different."),
    ],
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Throw away what an earlier run has left in the output folder.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Curate raw text by a recipe. A run that was stopped goes on where it was when the same command is given again."""
    import time

    from tokenmill.cli.output import step_meter
    from tokenmill.data.curate.pipeline import curate
    from tokenmill.data.curate.recipe import read_recipe, recipe_names

    if "=" in words[0]:
        raise UsageError(f"name a recipe first: {', '.join(recipe_names())}, or a .yaml file")
    recipe = read_recipe(words[0], words[1:])
    started = time.perf_counter()
    with step_meter() as progress:
        done = curate(recipe, services=curation_services(), progress=progress, fresh=fresh)
    seconds = time.perf_counter() - started
    emit(
        {"folder": str(done.folder), "new": done.new, "seconds": seconds, **done.manifest},
        as_json,
        _said(done, seconds),
    )


def _said(done: Curated, seconds: float) -> str:
    """What became of the documents, step by step."""
    values, folder = done.manifest, done.folder
    rows = [("read", f"{values['read']['documents']:,}", "", "")]
    for step in values["steps"]:
        most = sorted(step["dropped"].items(), key=lambda item: (-item[1], item[0]))
        changed = sorted(step["changed"].items(), key=lambda item: (-item[1]["hits"], item[0]))
        dropped_text = ", ".join(f"{reason} {count:,}" for reason, count in most[:4])
        changed_text = ", ".join(f"{reason} {one['hits']:,}" for reason, one in changed[:4])
        rows.append((step["name"], f"{step['went']:,}", dropped_text, changed_text))
    lines = [columns(("after", "documents", "dropped", "changed"), rows, gap=2), ""]
    if values["quarantined"]:
        lines.append(f"{values['quarantined']:,} could not be read: {folder}/quarantine.jsonl")
    written = values["written"]
    size = human_size(sum(one["bytes"] for one in values["outputs"]))
    took = f" in {human_duration(seconds)}" if done.new else ", already there"
    lines.append(f"{written['documents']:,} documents, {written['characters']:,} characters, {size}{took}")
    return "\n".join([*lines, f"report     {folder}/report.html", f"use        data={folder}/manifest.json"])


def curation_services() -> dict[str, Callable[..., Any]]:
    """What steps ask for that needs a model: functions that worker processes can be sent by name."""
    from tokenmill.cli.services import perplexity

    return {"perplexity": perplexity}


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
