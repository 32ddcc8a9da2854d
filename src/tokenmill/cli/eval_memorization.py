"""``tokenmill eval memorization``: how much of its training data a model writes down again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli.output import Json, PullProgress, columns, emit, note, step_progress
from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from tokenmill import LLM
    from tokenmill.evals.memorization import Rate, Recall, Trained

EPILOG = """\b
Examples:
  tokenmill eval memorization runs/latest/model --data train.jsonl
  tokenmill eval memorization smollm2:135m --adapter runs/latest/model --data train.jsonl --control held_out.jsonl
"""
SHOWN = 20


def eval_memorization(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model on this machine.")],
    data: Annotated[str, typer.Option(metavar="FILE", help="What it was trained on: rows as `train` takes them.")],
    control: Annotated[
        str | None, typer.Option(metavar="FILE", help="Rows of the same kind that it was not trained on.")
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="An adapter to put on it; may be repeated.")
    ] = None,
    prefixes: Annotated[str, typer.Option(metavar="N,N", help="Tokens that are given.")] = "16,32,64",
    length: Annotated[int, typer.Option(min=1, help="Tokens that have to follow.")] = 32,
    limit: Annotated[int, typer.Option(min=1, help="Documents that are drawn.")] = 100,
    seed: Annotated[int, typer.Option(help="Of documents and places.")] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the folder of results goes.")] = Path("evals"),
    as_json: Json = False,
) -> None:
    """Give prefixes of training documents and see whether the model goes on as they do, exactly or nearly."""
    lengths = _lengths(prefixes)
    from tokenmill import LLM
    from tokenmill.evals.memorization import by_copies, passages_of, rates, recall

    with PullProgress() as pulled:
        llm = LLM(model, adapter=adapter, progress=pulled)
    found: dict[str, list[Recall]] = {}
    for name, path in (("data", data), ("control", control)):
        if path is not None:
            passages = passages_of(_documents(path, llm), lengths, length, most=limit, seed=seed)
            with step_progress(name) as progress:
                found[name] = recall(_continuation(llm), passages, lengths, progress)
    measured = {name: rates(one) for name, one in found.items()}
    document: dict[str, Any] = {
        "model": model,
        "adapter": adapter or [],
        "length": length,
        "seed": seed,
        **{name: [rate.as_dict() for rate in one] for name, one in measured.items()},
        "by_copies": by_copies(found["data"]),
    }
    page = _write(out, model, document, found, measured, llm)
    emit({**document, "report": str(page)}, as_json, f"{_text(measured)}\n\nreport  {page}")


def _lengths(text: str) -> list[int]:
    try:
        lengths = sorted({int(one) for one in text.split(",")})
    except ValueError:
        lengths = []
    if not lengths or lengths[0] < 1:
        raise UsageError(f"--prefixes {text}: give numbers of tokens such as 16,32,64")
    return lengths


def _documents(path: str, llm: LLM) -> list[Trained]:
    from tokenmill.data.files import Broken, find_files, read_rows
    from tokenmill.data.formats import RowError, parse_row
    from tokenmill.data.render import Renderer
    from tokenmill.evals.memorization import Trained

    renderer = Renderer(llm.tokenizer)
    found: list[Trained] = []
    broken: list[str] = []
    for file in find_files(path):
        for row in read_rows(file):
            where = f"{file}:{row.line}"
            try:
                if isinstance(row, Broken):
                    raise RowError(row.problem)
                encoded = renderer.encode(parse_row(row.value))
            except RowError as error:
                broken.append(f"{where}: {error}")
                continue
            found += [Trained(where, tuple(one.ids.tolist()), tuple(one.learned.tolist())) for one in encoded]
    if broken:
        note(f"{len(broken)} rows are left out, the first: {broken[0]}")
    return found


def _continuation(llm: LLM) -> Any:
    from tokenmill.engine.sampling_params import SamplingParams

    def write(prompts: list[list[int]], count: int) -> list[list[int]]:
        params = SamplingParams(temperature=0, max_tokens=count, skip_special_tokens=False)
        return [done.token_ids for done in llm.complete(prompts, params)]

    return write


def _write(
    out: Path,
    model: str,
    document: dict[str, Any],
    found: dict[str, list[Recall]],
    measured: dict[str, list[Rate]],
    llm: LLM,
) -> Path:
    from tokenmill.core.html import Series, line_chart
    from tokenmill.core.terminal import clean
    from tokenmill.evals.measure import write_measure
    from tokenmill.evals.tasks.folder import new_folder

    def text(ids: Sequence[int]) -> str:
        return clean(llm.tokenizer.decode(list(ids)))

    folder = new_folder(out, f"memorization-{model}")
    folder.mkdir(parents=True)
    last = measured["data"][-1]
    curves = [
        Series(f"{name}, {kind}", [(rate.prefix, getattr(rate, kind)) for rate in one])
        for name, one in measured.items()
        for kind in ("exact", "near")
    ]
    cases = {
        f"{name}.jsonl": [
            {
                "document": one.passage.document.name,
                "prefix": one.prefix,
                "copies": one.passage.copies,
                "exact": one.exact,
                "similarity": round(one.similarity, 4),
                "before": text(one.passage.before[-one.prefix :]),
                "after": text(one.passage.after),
                "written": text(one.written),
            }
            for one in recalls
        ]
        for name, recalls in found.items()
    }
    best = sorted((one for one in found["data"] if one.prefix == last.prefix), key=lambda one: -one.similarity)
    return write_measure(
        folder,
        document,
        cases,
        title=f"What {model} knows by heart",
        subtitle=f"{last.passages} passages of {document['length']} tokens; prefixes of {_listed(measured)} tokens",
        verdict=f"{last.near:.1%} nearly, {last.exact:.1%} exactly, after {last.prefix} tokens",
        charts=[line_chart("Share extracted", curves, x_label="tokens given")],
        tables=[
            {"title": name, "header": ("tokens given", "exact", "near", "similarity"), "rows": _rows(one)}
            for name, one in measured.items()
        ],
        samples=[
            {
                "title": one.passage.document.name,
                "verdict": "exact" if one.exact else f"{one.similarity:.0%} alike",
                "request": text(one.passage.before[-one.prefix :]),
                "answers": [("the data go on", text(one.passage.after)), ("the model wrote", text(one.written))],
            }
            for one in best[:SHOWN]
        ],
        files=[("results.json", "all figures"), *((name, "every passage") for name in cases)],
    )


def _rows(measured: list[Rate]) -> list[tuple[str, str, str, str]]:
    return [
        (
            str(rate.prefix),
            f"{rate.exact:.1%} ± {rate.exact_stderr:.1%}",
            f"{rate.near:.1%} ± {rate.near_stderr:.1%}",
            f"{rate.similarity:.1%}",
        )
        for rate in measured
    ]


def _listed(measured: dict[str, list[Rate]]) -> str:
    return ", ".join(str(rate.prefix) for rate in measured["data"])


def _text(measured: dict[str, list[Rate]]) -> str:
    rows = [(name, *row) for name, one in measured.items() for row in _rows(one)]
    return columns(("rows", "tokens given", "exact", "near", "similarity"), rows)
