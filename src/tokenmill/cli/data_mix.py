"""``tokenmill data mix``: sources of data in chosen proportions, as a set of files with a manifest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenmill.cli.output import Json, columns, emit, human_count, step_meter
from tokenmill.core.errors import UsageError

EPILOG = """\b
Examples:
  tokenmill data mix web=raw/ books=books.jsonl --weight web=3 --weight books=1 --tokens 10M -o mixed
  tokenmill data mix en=en.parquet de=de.parquet fi=fi.parquet --temperature 2 --max-epochs 4 -o mixed
"""


def mix(
    sources: Annotated[
        list[str], typer.Argument(metavar="[NAME=]PATH...", help="Sources: files, folders or patterns, with names.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="The folder that is written.")],
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="Share of a source, relative to the others; give all or none."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Without weights: sizes are raised to 1/temperature; 1 keeps their proportions."),
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="How much in all: 5000000, 5M, 2B; else as much as fits.")] = None,
    max_epochs: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]NUMBER", help="How often sources (or one) may be taken at most; else once."),
    ] = None,
    count: Annotated[
        str, typer.Option(help="What a token is: words, bytes, or the path of a tokenizer.json.")
    ] = "words",
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of documents.")] = 0,
    format: Annotated[str, typer.Option(metavar="jsonl|parquet", help="Of the files that are written.")] = "jsonl",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Throw away what an earlier run has left in the output folder.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Mix sources of data by weights, temperature or a budget of tokens; the same documents for the same seed."""
    from tokenmill.data.curate.mix import MixOptions, check_sources
    from tokenmill.data.curate.pipeline import curate
    from tokenmill.data.curate.recipe import read_recipe

    options: dict[str, Any] = {"count": count, "temperature": temperature}
    if weight:
        options["weights"] = dict(_pair(text, "--weight") for text in weight)
    if max_epochs:
        options["max_epochs"] = _caps(max_epochs)
    if tokens is not None:
        options["tokens"] = _amount(tokens)
    named = _named(sources)
    recipe = read_recipe(
        {
            "input": {"path": named},
            "output": {"path": output, "format": format},
            "steps": [{"mix": {key: value for key, value in options.items() if value is not None}}],
            "seed": seed,
        }
    )
    check_sources(named, MixOptions.model_validate(recipe.steps[0].options))
    with step_meter() as progress:
        done = curate(recipe, progress=progress, fresh=fresh)
    documents = done.manifest["written"]["documents"]
    rows = [(file["file"], f"{file['documents']:,}") for file in done.manifest["outputs"]]
    said = columns(("file", "documents"), rows, gap=2)
    text = f"{said}\n\n{documents:,} documents ({human_count(done.manifest['written']['characters'])} characters)"
    emit(
        {"folder": str(done.folder), "new": done.new, **done.manifest},
        as_json,
        f"{text}\nuse  data={output}/manifest.json",
    )


def _named(sources: Sequence[str]) -> dict[str, str]:
    """Paths by name; a path without one has that of its file or folder."""
    named: dict[str, str] = {}
    for text in sources:
        name, sign, path = text.partition("=")
        if not sign or "/" in name:
            name, path = Path(text).name.partition(".")[0], text
        if not re.fullmatch(r"[\w.-]+", name) or not path:
            raise UsageError(f"{text!r}: give the source a name of letters and digits, as in web={path or 'PATH'}")
        if name in named:
            raise UsageError(f"two sources are called {name!r}; give them names, as in NAME=PATH")
        named[name] = path
    return named


def _pair(text: str, option: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not name or not value >= 0:
        raise UsageError(f"{option} {text}: give NAME=NUMBER, as in web=2")
    return name, value


def _caps(given: Sequence[str]) -> float | dict[str, float]:
    if len(given) == 1 and "=" not in given[0]:
        try:
            return float(given[0])
        except ValueError as error:
            raise UsageError(f"--max-epochs {given[0]}: give a number, or NAME=NUMBER for each source") from error
    return dict(_pair(text, "--max-epochs") for text in given)


def _amount(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMBT]?)", text.strip().upper())
    if match is None:
        raise UsageError(f"--tokens {text}: give a number such as 5000000, 5M or 2B")
    return int(float(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}[match[2]])
