"""``tokenmill eval leakage``: which rows of a test set stand in the training data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenmill.cli.output import Json, columns, emit
from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from tokenmill.evals.leakage import Leakage

EPILOG = """\b
Examples:
  tokenmill eval leakage train.jsonl --against test.jsonl
  tokenmill eval leakage runs/curated --against questions.jsonl --n 8 --fail-above 0
"""
SHOWN = 20


def eval_leakage(
    train: Annotated[str, typer.Argument(metavar="TRAIN", help="Training data: a file, a folder or a pattern.")],
    against: Annotated[list[str], typer.Option(metavar="FILE", help="Test rows to look for; may be repeated.")],
    n: Annotated[int, typer.Option(min=2, help="Words in a run that counts as the same.")] = 12,
    fail_above: Annotated[
        float | None, typer.Option(min=0, max=1, metavar="SHARE", help="Exit status 1 if more of the rows leaked.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the folder of results goes.")] = Path("evals"),
    as_json: Json = False,
) -> None:
    """Find test rows in training data by runs of words they share; `data run` with decontaminate takes them out."""
    from tokenmill.evals.leakage import leakage, training_texts

    found = leakage(training_texts(train), against, n=n)
    if not found.documents:
        raise UsageError(f"{train}: there is no training row")
    page = _write(out, train, found)
    document = {
        "train": train,
        "against": against,
        "n": n,
        "documents": found.documents,
        "rows": found.rows,
        "short": found.short,
        "leaked": len(found.leaked),
        "rate": found.rate,
        "report": str(page),
    }
    rows = [(f"{one.share:.0%}", one.name, one.where[0], one.text[:50]) for one in found.leaked[:SHOWN]]
    listed = columns(("found", "test row", "first in", "text"), rows) + "\n\n" if rows else ""
    told = f"{len(found.leaked)} of {found.rows} test rows ({found.rate:.1%}) stand in {found.documents} training rows"
    emit(document, as_json, f"{listed}{told}; {found.short} are too short to tell\nreport  {page}")
    if fail_above is not None and found.rate > fail_above:
        raise typer.Exit(1)


def _write(out: Path, train: str, found: Leakage) -> Path:
    from tokenmill.core.terminal import clean
    from tokenmill.evals.measure import write_measure
    from tokenmill.evals.tasks.folder import new_folder

    folder = new_folder(out, "leakage")
    folder.mkdir(parents=True)
    cases = [{"row": one.name, "share": one.share, "where": one.where, "text": one.text} for one in found.leaked]
    figures = {"documents": found.documents, "rows": found.rows, "short": found.short, "leaked": len(found.leaked)}
    listed = [(f"{one.share:.0%}", one.name, ", ".join(one.where[:3]), clean(one.text)) for one in found.leaked[:200]]
    return write_measure(
        folder,
        {"train": train, **figures, "rate": found.rate},
        {"leaked.jsonl": cases},
        title="Test rows in the training data",
        subtitle=f"{found.rows} rows looked for in {found.documents} training rows",
        verdict=f"{len(found.leaked)} leaked" if found.leaked else "none leaked",
        warnings=[f"{len(found.leaked)} test rows ({found.rate:.1%}) were seen in training."] if found.leaked else (),
        tiles=[(name, str(value)) for name, value in figures.items()],
        tables=[{"title": "Leaked", "header": ("found", "test row", "in", "text"), "rows": listed}],
        files=[("results.json", "all figures"), ("leaked.jsonl", "every leaked row")],
    )
