"""``tokenmill eval probes``: needles, orders hidden in texts, what is declined, certainty, cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli.output import Json, columns, emit, step_meter
from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from tokenmill.evals.probes import Finding

EPILOG = """\b
Examples:
  tokenmill eval probes smollm2:135m
  tokenmill eval probes smollm2:135m --kinds needle --lengths 500,2000,5000
  tokenmill eval probes big-model@https://api.example.com/v1 --kinds cost --price 0.5,1.5 --key-variable API_KEY
"""
SHOWN = 8


def eval_probes(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model on this machine, or NAME@URL of a server.")],
    kinds: Annotated[
        str, typer.Option(metavar="A,B", help="needle, injection, safety, consistency, calibration, cost; or all.")
    ] = "all",
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="An adapter to put on it; may be repeated.")
    ] = None,
    lengths: Annotated[str, typer.Option(metavar="N,N", help="needle: words of the texts.")] = "200,600,1200",
    samples: Annotated[int, typer.Option(min=2, help="consistency: answers to each question.")] = 5,
    temperature: Annotated[float, typer.Option(min=0, help="consistency: of these answers.")] = 0.7,
    price: Annotated[
        str | None, typer.Option(metavar="IN,OUT", help="cost: for a million tokens read and written.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows of each set.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 128,
    key_variable: Annotated[
        str | None, typer.Option(metavar="NAME", help="The environment variable that holds the server's key.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of texts and drawn answers.")] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the folder of results goes.")] = Path("evals"),
    as_json: Json = False,
) -> None:
    """Probe a model with small sets written for it; a figure each, with every case on a page."""
    from tokenmill.cli.subjects import open_subject
    from tokenmill.core.paths import home
    from tokenmill.evals.probes import KINDS, Options, run_probes

    numbers = _numbers("--lengths", lengths)
    into = _numbers("--price", price) if price is not None else None
    if into is not None and len(into) != 2:
        raise UsageError(f"--price {price}: give two numbers, for a million tokens read and written")
    options = Options(
        lengths=tuple(int(one) for one in numbers),
        samples=samples,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        limit=limit,
        price=None if into is None else (into[0], into[1]),
    )
    wanted = list(KINDS) if kinds == "all" else [one.strip() for one in kinds.split(",") if one.strip()]
    subject = open_subject(
        model, adapter=adapter, cache=home() / "cache" / "probes", key_variable=key_variable, exact=False
    )
    with step_meter() as progress:
        found = run_probes(subject, wanted, options, progress)
    document: dict[str, Any] = {"model": subject.identity.name, **{one.kind: one.as_dict() for one in found}}
    page = _write(out, subject.identity.name, document, found)
    rows = [(one.kind, _value(one), one.what, ", ".join(one.notes)) for one in found]
    text = f"{columns(('probe', 'value', 'what', 'note'), rows)}\n\nreport  {page}"
    emit({**document, "report": str(page)}, as_json, text)


def _numbers(flag: str, text: str) -> list[float]:
    try:
        numbers = [float(one) for one in text.split(",")]
    except ValueError:
        numbers = []
    words = flag == "--lengths"  # whole ones
    if not numbers or min(numbers) < words or (words and any(one % 1 for one in numbers)):
        raise UsageError(f"{flag} {text}: give {'whole ' if words else ''}numbers with commas between them")
    return numbers


def _value(one: Finding) -> str:
    if one.kind == "cost":
        return f"{one.value:.0f} ± {one.stderr:.0f}"
    return f"{one.value:.1%}" + (f" ± {one.stderr:.1%}" if one.stderr else "")


def _write(out: Path, model: str, document: dict[str, Any], found: list[Finding]) -> Path:
    from tokenmill.core.terminal import clean
    from tokenmill.evals.measure import write_measure
    from tokenmill.evals.tasks.folder import new_folder

    folder = new_folder(out, f"probes-{model}")
    folder.mkdir(parents=True)
    tables: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    for one in found:
        figures = [(name.replace("_", " "), _figure(value)) for name, value in one.figures.items()]
        rows = [(one.what, _value(one)), *figures]
        tables.append({"title": one.kind.capitalize(), "header": (), "rows": rows})
        tables += [
            {"title": f"{one.kind.capitalize()}: {title}", "header": header, "rows": rows}
            for title, header, rows in one.tables
        ]
        wrong = [case for case in one.cases if not case.right][:SHOWN]
        samples += [
            {
                "title": f"{one.kind}: {case.id}",
                "verdict": "",
                "request": clean(case.asked),
                "answers": [("the model", clean(case.said))],
            }
            for case in wrong
        ]
    return write_measure(
        folder,
        document,
        {f"{one.kind}.jsonl": [case.as_dict() for case in one.cases] for one in found},
        title=f"Probes of {model}",
        subtitle="what went wrong stands below the figures, what went right in the files",
        verdict=", ".join(one.kind for one in found),
        warnings=[note for one in found for note in one.notes],
        tiles=[(one.what, _value(one)) for one in found],
        tables=tables,
        samples=samples,
        files=[("results.json", "all figures"), *((f"{one.kind}.jsonl", "every case") for one in found)],
    )


def _figure(value: float | int | None) -> str:
    if value is None:
        return "none"
    return str(value) if isinstance(value, int) else f"{value:.3g}"
