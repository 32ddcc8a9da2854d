"""``tokenmill label``: people compare answers on a page; what they said becomes training data, and is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli.output import Json, emit, note, verb
from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from tokenmill.align.label import Item, LabelLog

app = verb()

EPILOG = """\b
Examples:
  tokenmill label answers.jsonl
  tokenmill label answers.jsonl --measures
  tokenmill label answers.jsonl --pairs pairs.jsonl
"""


@app.command(epilog=EPILOG)
def label(
    file: Annotated[str, typer.Argument(help="Rows with a prompt and two answers (answers, or chosen and rejected).")],
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The verdicts, JSONL; default: FILE.labels.jsonl.")
    ] = None,
    measures: Annotated[
        bool, typer.Option("--measures", help="Print agreement of the raters and position bias; serve nothing.")
    ] = False,
    pairs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what most raters prefer as pairs; serve nothing.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8765,
    seed: Annotated[int, typer.Option(help="Of the sides on which answers are shown.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare answers in a browser: keys 1, 2, T (tie), S (skip). Verdicts are kept as they are given."""
    if measures and pairs is not None:
        raise UsageError("--measures and --pairs do not go together")

    from tokenmill.align.label import LabelLog, read_items
    from tokenmill.serve.label import serve_labels

    items = read_items(file)
    log = LabelLog(labels or Path(f"{file.rstrip('/')}.labels.jsonl"))
    if measures:
        _measures(log, as_json)
    elif pairs is not None:
        _pairs(items, log, pairs, as_json)
    else:

        def ready(url: str) -> None:
            note(f"{len(items)} items; verdicts go to {log.path}. Open {url} ; Ctrl-C stops it")
            if as_json:
                print(json.dumps({"url": url, "items": len(items), "labels": str(log.path)}), flush=True)

        serve_labels(items, log, host=host, port=port, seed=seed, on_ready=ready)


def _measures(log: LabelLog, as_json: bool) -> None:
    from tokenmill.serve.label import measures_of

    found = measures_of(log)
    emit(found, as_json, _measures_text(found))


def _measures_text(found: dict[str, Any]) -> str:
    agreement, position = found["agreement"], found["position"]
    verdicts = ", ".join(f"{count} {kind}" for kind, count in found["verdicts"].items())
    lines = [
        f"verdicts   {found['labels']}: {verdicts}",
        f"raters     {agreement['raters']}, {agreement['items']} items judged by two or more",
    ]
    if agreement["share"] is not None:
        lines.append(f"agreement  {agreement['share']:.1%} of pairs of verdicts; alpha {agreement['alpha']:.3f}")
        lines += [f"  {who}: kappa {kappa:.3f}" for who, kappa in agreement["kappas"].items()]
    if position["share"] is not None:
        share, p = position["share"], position["p_value"]
        lines.append(f"position   {share:.1%} of {position['left'] + position['right']} for the left (p = {p:.3g})")
    return "\n".join(lines)


def _pairs(items: list[Item], log: LabelLog, path: Path, as_json: bool) -> None:
    from tokenmill.align.label import pairs_of
    from tokenmill.core.paths import atomic_write

    rows = pairs_of(items, log.labels)
    if not rows:
        raise UsageError(f"{log.path}: there is no item that most of its raters decided in the same way")
    with atomic_write(path) as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace"))
    text = f"{len(rows)} pairs of {len(items)} items written to {path}; train on them with the recipe dpo or reward"
    emit({"pairs": len(rows), "items": len(items), "file": str(path)}, as_json, text)
