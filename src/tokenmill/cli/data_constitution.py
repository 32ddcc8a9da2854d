"""``tokenmill data constitution``: red-team prompts to preference pairs by critique and revision."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli.askers import open_asker
from tokenmill.cli.output import Json, columns, emit, note, step_meter

if TYPE_CHECKING:
    from tokenmill.align.constitution import Judgement

EPILOG = """\b
Examples:
  tokenmill data constitution --model smollm2:135m --samples 4 --out pairs
  tokenmill data constitution prompts.jsonl --critic big@http://127.0.0.1:8000/v1
"""


def constitution(
    prompts: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="Rows with a prompt; default: the shipped red-team prompts.")
    ] = None,
    model: Annotated[str, typer.Option(help="Who answers: a model here, or NAME@URL of a server.")] = "smollm2:135m",
    critic: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Who critiques and revises; default: the model itself.")
    ] = None,
    key_variable: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds the servers' key.")
    ] = None,
    rules: Annotated[
        Path | None, typer.Option("--constitution", metavar="FILE", help="Principles, YAML; default: the shipped ones.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where pairs, transcripts and report go.")] = Path(
        "constitution"
    ),
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each prompt.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Critiques and revisions of each answer.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of each answer, critique and revision.")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="Of first answers; half of it when revising.")
    ] = 0.7,
    seed: Annotated[int, typer.Option(help="Of sampling and of the order of principles.")] = 0,
    as_json: Json = False,
) -> None:
    """Critique and revise answers by principles: pairs for train dpo and train reward. Stopped runs go on."""
    from tokenmill.align.constitution import Options, judge, read_constitution, read_prompts, revise

    found, asked = read_constitution(rules), read_prompts(prompts)[:limit]
    options = Options(samples, rounds, max_tokens, temperature, seed=seed)
    name = critic or model
    answering = open_asker(model, key_variable)
    revising = answering if name == model else open_asker(name, key_variable)
    with step_meter() as progress:
        transcripts = revise(asked, found, answering, revising, options, progress)
    judged = judge(transcripts, found)
    about = {"model": model, "critic": name, "samples": samples, "rounds": rounds, "seed": seed}
    document, text = _write(out, judged, about)
    emit(document, as_json, text)


def _write(out: Path, judged: list[Judgement], about: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Files into the folder; the document and the text that end the verb."""
    from tokenmill.align.constitution import training_rows, write_constitution_report

    pairs, supervised = training_rows(judged)
    _rows(out / "pairs.jsonl", pairs)
    _rows(out / "sft.jsonl", supervised)
    _rows(out / "transcripts.jsonl", [_transcript(one) for one in judged])
    write_constitution_report(out / "report.html", judged, about)
    reasons = Counter(one.reason for one in judged if one.reason is not None)
    document = {
        "folder": str(out), **about, "prompts": len({one.transcript.prompt for one in judged}), "answers": len(judged),
        "pairs": len(pairs), "harmless_pairs": sum(one.transcript.harmless and not one.reason for one in judged),
        "dropped": dict(reasons),
    }  # fmt: skip
    if not pairs:
        note("no revision counts: look at report.html; a larger critic (--critic, --critic-url) revises better")
    rows = [
        ("pairs", str(len(pairs))),
        *[(f"no pair: {reason}", str(count)) for reason, count in reasons.most_common()],
    ]
    text = (
        f"{columns(('answers', str(len(judged))), rows)}\n\nreport  {out}/report.html\nuse     data={out}/pairs.jsonl"
    )
    return document, text


def _transcript(one: Judgement) -> dict[str, Any]:
    said = one.transcript
    steps = [step.__dict__ for step in said.rounds]
    shown = {"prompt": said.prompt, "sample": said.sample, "harmless": said.harmless, "first": said.first}
    return {**shown, "rounds": steps, "reason": one.reason, "principle": one.principle}


def _rows(path: Path, rows: list[dict[str, Any]]) -> None:
    from tokenmill.core.paths import atomic_write

    with atomic_write(path) as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace"))
