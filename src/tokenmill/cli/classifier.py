"""``tokenmill data classifier``: train the linear classifiers that the steps classifier and toxicity judge by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tokenmill.cli.output import Json, columns, emit, verb
from tokenmill.core.errors import UsageError

app = verb()

_EPILOG = """\b
Example:
  tokenmill data classifier train good=articles.jsonl bad=spam.jsonl --to quality.safetensors
"""


@app.callback()
def _classifier() -> None:
    """Train linear text classifiers."""


@app.command(epilog=_EPILOG)
def train(
    labelled: Annotated[
        list[str], typer.Argument(metavar="LABEL=FILE...", help="Texts of each label: a file, a folder or a pattern.")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="Where the classifier goes (.safetensors).")],
    eval_share: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share held out, on which precision and recall are measured.")
    ] = 0.1,
    bits: Annotated[int, typer.Option(min=8, max=24, help="Words are hashed into 2 to this many buckets.")] = 18,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the texts.")] = 10,
    seed: Annotated[int, typer.Option(help="Of what is held out and of the order.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a classifier on labelled texts, measure it on held-out ones and save it."""
    import random

    from tokenmill.data.curate.linear import evaluate
    from tokenmill.data.curate.linear import train as fit

    rows = _read(labelled)
    random.Random(seed).shuffle(rows)
    held = round(len(rows) * eval_share)
    model = fit([d for d, _ in rows[held:]], [label for _, label in rows[held:]], bits=bits, epochs=epochs, seed=seed)
    model.save(to)
    measured: dict[str, Any] = evaluate(model, [d for d, _ in rows[:held]], [label for _, label in rows[:held]])
    document = {"file": str(to), "labels": list(model.labels), "trained_on": len(rows) - held, "held_out": measured}
    emit(document, as_json, _said(document, measured))


def _read(labelled: list[str]) -> list[tuple[Any, str]]:
    """Documents and their labels, from ``LABEL=FILE`` words."""
    from tokenmill.data.curate.read import contents
    from tokenmill.data.curate.step import Document
    from tokenmill.data.files import Row, find_files, read_rows

    rows: list[tuple[Any, str]] = []
    for word in labelled:
        label, equals, path = word.partition("=")
        if not equals or not label or not path:
            raise UsageError(f"{word!r} is not LABEL=FILE, such as good=articles.jsonl")
        before = len(rows)
        for file in find_files(path):
            for row in read_rows(file):
                text = row.value.get("text") if isinstance(row, Row) else None
                if isinstance(row, Row) and text is None:
                    text = "\n".join(contents(row.value))
                if isinstance(text, str) and text.strip():
                    rows.append((Document(f"{label}#{len(rows)}", text), label))
        if len(rows) == before:
            raise UsageError(f"{path} has no text")
    return rows


def _said(document: dict[str, Any], measured: dict[str, Any]) -> str:
    lines = [f"trained on {document['trained_on']:,} texts: {document['file']}"]
    if measured["documents"]:
        scores = measured["labels"]
        rows = [(k, f"{v['precision']:.3f}", f"{v['recall']:.3f}", f"{v['documents']:,}") for k, v in scores.items()]
        lines += ["", columns(("held out", "precision", "recall", "texts"), rows, gap=2)]
        lines.append(f"accuracy {measured['accuracy']:.3f}")
    return "\n".join(lines)
