"""``tokenmill eval compare``: a base model beside tuned ones, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenmill.cli import eval_tasks as given
from tokenmill.cli.output import Json, columns, emit, note
from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from tokenmill.evals.compare import Comparison
    from tokenmill.evals.tasks.folder import Results

EPILOG = """\b
Examples:
  tokenmill eval compare smollm2:135m runs/latest/model --tasks arithmetic,format
  tokenmill eval compare evals/before evals/after --fail-if regression
  tokenmill eval compare base tuned --tasks my.jsonl --fail-if "exact_match<0.8" --fail-if "change:f1<-0.02"
"""


def eval_compare(
    models: Annotated[
        list[str],
        typer.Argument(metavar="BASE TUNED...", help="Models, NAME@URL of a server, or folders of `eval tasks`."),
    ],
    tasks: given.Tasks = [],  # noqa: B006
    shots: given.Shots = None,
    seed: given.Seed = 0,
    chat: given.Chat = "auto",
    limit: given.Limit = None,
    samples: given.Samples = None,
    temperature: given.Temperature = None,
    max_tokens: given.MaxTokens = None,
    batch_size: given.BatchSize = 16,
    fast: given.Fast = False,
    dtype: given.Dtype = None,
    ctx_size: given.CtxSize = None,
    no_cache: given.NoCache = False,
    include: given.Include = None,
    key_variable: given.KeyVariable = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help='Exit with status 1 where it holds of a tuned model: "acc<0.5", "change:acc<-0.02", regression.',
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where results go; default: a new folder below evals/.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare models row by row: differences with intervals, regressions, samples side by side, a report."""
    from tokenmill.evals.compare import compare
    from tokenmill.evals.reports import write_comparison
    from tokenmill.evals.tasks.folder import new_folder

    gates = given.read_gates(fail_if)
    if len(models) < 2:
        raise UsageError("give a base and a model to compare with it at least")
    settings = given.settings_of(shots, seed, chat, limit, max_tokens, samples, temperature)
    how = given.How(settings, None, batch_size, fast, dtype, ctx_size, no_cache, include, key_variable)
    folder = out or new_folder(Path("evals"), "compare")
    names = given.split(tasks)
    base, *tuned = [_results(model, names, how, folder / str(n)) for n, model in enumerate(models)]
    comparison = compare(base, tuned, seed=seed)
    report = write_comparison(folder / "report.html", comparison)
    failed = given.check_gates(gates, comparison.figures())
    document = {**comparison.document(), "report": str(report), "failed": failed}
    emit(document, as_json, f"{_table(comparison)}\n\n{report}")
    for line in comparison.notes:
        note(line)
    given.finish(failed)


def _results(model: str, tasks: list[str], how: given.How, folder: Path) -> Results:
    """What a folder holds, or what a model makes of the tasks."""
    from tokenmill.evals.reports import write_tasks_report
    from tokenmill.evals.tasks.folder import RESULTS, read_results

    if (Path(model) / RESULTS).is_file():
        if tasks:
            raise UsageError(f"{model} holds results already: --tasks is for models")
        return read_results(Path(model))
    if not tasks:
        raise UsageError(f"{model} is no folder of results: say what to measure it by with --tasks")
    results = given.measure(model, tasks, how, folder)
    write_tasks_report(results)
    return results


def _table(comparison: Comparison) -> str:
    rows = []
    for line in comparison.lines:
        one = line.difference
        name = f"{line.task} {line.metric}" + (f" · {line.category}" if line.category else "")
        rows.append(
            (
                comparison.labels[line.model + 1],
                name + (" *" if line.counts and not line.category else ""),
                f"{one.first:.3f}",
                f"{one.second:.3f}",
                f"{one.value:+.3f}",
                f"{one.low:+.3f} … {one.high:+.3f}",
                "" if one.p is None else f"{one.p:.3g}",
                line.verdict,
            )
        )
    header = ("model", "figure", "base", "tuned", "difference", "95 % interval", "p", "")
    return columns(header, rows)
