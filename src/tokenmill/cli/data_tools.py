"""``tokenmill data tools``: conversations with tool calls made, converted and checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenmill.cli.output import Json, emit, note, verb
from tokenmill.core.errors import TokenmillError, UsageError

app = verb()

_MAKE_EPILOG = """\b
Examples:
  tokenmill data tools make tools.yaml --rows 200 --out calls.jsonl
  tokenmill data tools make tools.yaml --model qwen3:8b@http://127.0.0.1:11434/v1 --out calls.jsonl
"""
_CONVERT_EPILOG = """\b
Example:
  tokenmill data tools convert calls.jsonl hermes.jsonl --to hermes
"""
_CHECK_EPILOG = """\b
Example:
  tokenmill data tools check calls.jsonl
"""
SHOWN = 10


@app.callback()
def _tools() -> None:
    """Conversations with tool calls: make them from schemas, convert between spellings, check them."""


@app.command(epilog=_MAKE_EPILOG)
def make(
    tools: Annotated[Path, typer.Argument(metavar="TOOLS", help="Tools as JSON schemas, .json or .yaml.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the rows go, JSONL.")],
    rows: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    offered: Annotated[int, typer.Option(min=1, help="Tools on offer in a row at most.")] = 4,
    parallel: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of rows with two calls.")] = 0.0,
    no_call: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of rows that need no tool.")] = 0.1,
    model: Annotated[
        str | None, typer.Option(help="Puts requests in its own words: a model here, or NAME@URL of a server.")
    ] = None,
    key_variable: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds the server's key.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Requests and the calls that answer them, arguments drawn from the tools' schemas: to train and to measure."""
    from tokenmill.data.tool_make import MakeOptions, make_rows, read_tool_file, reworded

    sources = read_tool_file(tools)
    made = plain = make_rows(sources, MakeOptions(rows, seed, offered, parallel, no_call))
    if model is not None:
        from tokenmill.cli.askers import open_asker

        name, asker = open_asker(model, key_variable)
        made = reworded(plain, sources, name, asker.ask_all, seed)
    _write(out, made)
    document = {
        "file": str(out), "rows": len(made), "tools": len(sources),
        "without_call": sum(not row["calls"] for row in made),
        "reworded": sum(a is not b for a, b in zip(made, plain, strict=True)),
    }  # fmt: skip
    said = f"{len(made)} rows over {len(sources)} tools written to {out}"
    emit(document, as_json, said + (f", {document['reworded']} of them in the model's words" if model else ""))


@app.command(epilog=_CONVERT_EPILOG)
def convert(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Rows with conversations, in any spelling.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where they go, JSONL.")],
    to: Annotated[str, typer.Option(metavar="openai|anthropic|hermes|llama3", help="The spelling that is wanted.")],
    source: Annotated[
        str | None, typer.Option("--from", metavar="SPELLING", help="What they are in; default: each row's marks tell.")
    ] = None,
    invalid: Annotated[str, typer.Option(metavar="error|drop", help="A row that cannot be read or held.")] = "error",
    as_json: Json = False,
) -> None:
    """Write conversations with tool calls in another spelling. What it cannot hold is refused, never changed."""
    from tokenmill.data.formats import RowError
    from tokenmill.data.tool_formats import SPELLINGS, convert_tools

    for flag, value in (("--to", to), ("--from", source)):
        if value not in (*SPELLINGS, None):
            raise UsageError(f"{flag} {value}: give one of {', '.join(SPELLINGS)}")
    if invalid not in ("error", "drop"):
        raise UsageError(f"--invalid {invalid}: give error or drop")
    kept: list[dict[str, Any]] = []
    dropped: list[str] = []
    for where, row in _rows(file):
        try:
            kept.append(convert_tools(row, to, source))  # type: ignore[arg-type]
        except RowError as error:
            if invalid == "error":
                raise TokenmillError(f"{where}: {error}; --invalid drop leaves such rows out") from error
            dropped.append(f"{where}: {error}")
    _write(out, kept)
    if dropped:
        note(f"{len(dropped)} rows are left out, the first: {dropped[0]}")
    emit({"file": str(out), "rows": len(kept), "dropped": len(dropped)}, as_json, f"{len(kept)} rows written to {out}")


@app.command(epilog=_CHECK_EPILOG)
def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Rows with conversations, in any spelling.")],
    as_json: Json = False,
) -> None:
    """Names, schemas and arguments of all calls, and that results belong to calls. Exit status 1 where one is wrong."""
    from tokenmill.data.formats import RowError
    from tokenmill.data.tool_checks import tool_problems
    from tokenmill.data.tool_formats import read_tools

    problems: list[str] = []
    count = calls = 0
    for where, row in _rows(file):
        count += 1
        try:
            chat = read_tools(row)
            calls += sum(len(message.get("tool_calls", ())) for message in chat.messages)
            problems += [f"{where}: {one}" for one in tool_problems(chat)]
        except RowError as error:
            problems.append(f"{where}: {error}")
    shown = "\n".join([*problems[:SHOWN], *([f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else [])])
    said = f"{count} rows, {calls} calls: " + (f"{len(problems)} problems\n{shown}" if problems else "all sound")
    emit({"rows": count, "calls": calls, "problems": problems}, as_json, said)
    if problems:
        raise typer.Exit(1)


def _rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row with its place."""
    from tokenmill.data.files import Broken, find_files, read_rows

    for file in find_files(path):
        for row in read_rows(file):
            if isinstance(row, Broken):
                raise TokenmillError(str(row))
            yield f"{file}:{row.line}", row.value


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    from tokenmill.core.paths import atomic_write

    with atomic_write(path) as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace"))
