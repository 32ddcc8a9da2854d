"""A folder of verdicts: ``results.json``, ``verdicts.jsonl``, ``report.html``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenmill.core.terminal import clean
from tokenmill.evals.judge.duel import Duel
from tokenmill.evals.judge.figures import Figures
from tokenmill.evals.judge.rubric import Mark
from tokenmill.evals.measure import write_measure

SHOWN = 40
"""Samples on the page; the file has all."""


def write_duels(
    folder: Path, names: tuple[str, str], judge: str, duels: Sequence[Duel], figures: Figures, facts: Mapping[str, Any]
) -> Path:
    """The folder of an A/B comparison; the path of its page."""
    rows = [
        {
            "id": one.pair.id,
            "category": one.pair.category,
            "verdict": one.verdict,
            "consistent": one.consistent,
            "slots": one.slots,
            "request": one.pair.request,
            "answers": [one.pair.first, one.pair.second],
            "words": one.words,
        }
        for one in duels
    ]
    first, second = names
    named = {"first": first, "second": second, "tie": "tie", None: "unreadable"}
    rate = "none" if figures.win_rate is None else f"{figures.win_rate:.1%} ± {figures.stderr or 0.0:.1%}"
    files = [("results.json", "all figures"), ("verdicts.jsonl", "every verdict")]
    if (folder / "labels.jsonl").exists():
        files.append(("labels.jsonl", "the same as tokenmill label writes people's"))
    return write_measure(
        folder,
        {**facts, **figures.as_dict()},
        {"verdicts.jsonl": rows},
        title=f"{first} beside {second}",
        subtitle=f"judged by {judge}, every pair in both orders",
        verdict="the judge goes by the place" if figures.position_biased else f"{first} wins {rate}",
        warnings=warnings_of(figures),
        tiles=[
            ("win rate", rate),
            ("at equal length", _share(figures.length_adjusted)),
            ("wins, ties, losses", f"{figures.wins}, {figures.ties}, {figures.losses}"),
            ("survive the swap", _share(figures.consistent)),
            ("unreadable", str(figures.unreadable)),
        ],
        tables=[
            {"title": "Win rate by category", "rows": [(k, _share(v)) for k, v in figures.categories.items()]},
            {"title": "The judge", "rows": _judge_rows(figures)},
        ],
        samples=[
            {
                "title": one.pair.category or one.pair.id,
                "verdict": named[one.verdict] + ("" if one.consistent or one.verdict is None else ", by the swap"),
                "request": clean(one.pair.request),
                "answers": [(first, clean(one.pair.first)), (second, clean(one.pair.second))],
                "words": [clean(text) for text in one.words if text],
            }
            for one in duels[:SHOWN]
        ],
        files=files,
    )


def write_marks(
    folder: Path, name: str, judge: str, marks: Sequence[Mark], found: Mapping[str, Any], facts: Mapping[str, Any]
) -> Path:
    """The folder of one model's marks; the path of its page."""
    rows = [
        {
            "id": one.question.id,
            "category": one.question.category,
            "turn": one.turn + 1,
            "mark": one.mark,
            "request": one.question.turns[one.turn],
            "answer": one.answer,
            "words": one.words,
        }
        for one in marks
    ]
    mark = "none" if found["mark"] is None else f"{found['mark']:.2f} ± {found['stderr']:.2f}"
    return write_measure(
        folder,
        {**facts, **found},
        {"verdicts.jsonl": rows},
        title=f"{name}, marked",
        subtitle=f"by {judge}, from 1 to 10",
        verdict=mark,
        tiles=[("mark", mark), ("answers", str(found["answers"])), ("unreadable", str(found["unreadable"]))],
        tables=[
            {"title": "By turn", "rows": [(turn, f"{value:.2f}") for turn, value in found["turns"].items()]},
            {"title": "By category", "rows": [(k, f"{value:.2f}") for k, value in found["categories"].items()]},
        ],
        samples=[
            {
                "title": f"{one.question.category or one.question.id}, turn {one.turn + 1}",
                "verdict": "unreadable" if one.mark is None else f"{one.mark:.1f}",
                "request": clean(one.question.turns[one.turn]),
                "answers": [(name, clean(one.answer))],
                "words": [clean(one.words)] if one.words else [],
            }
            for one in marks[:SHOWN]
        ],
        files=[("results.json", "all figures"), ("verdicts.jsonl", "every mark")],
    )


def warnings_of(figures: Figures) -> list[str]:
    """What somebody who reads the figures has to mind."""
    found = []
    if figures.position_biased:
        first, second = figures.same_place
        found.append(
            f"The judge goes by the place: of {first + second} pairs it preferred whatever stood first {first} times "
            f"and whatever stood second {second} times (p = {figures.position_p:.2g}). These pairs count as ties; take "
            "another judge."
        )
    if figures.unreadable:
        found.append(f"{figures.unreadable} of {figures.pairs} pairs have no verdict and are left out.")
    if figures.length_adjusted is not None and figures.win_rate is not None:
        fallen = abs(figures.win_rate - 0.5) - abs(figures.length_adjusted - 0.5)
        if fallen > 0.1:
            found.append(
                f"At equal length the win rate is {figures.length_adjusted:.1%}, not {figures.win_rate:.1%}: the judge "
                "goes by length, at least in part."
            )
    return found


def _judge_rows(figures: Figures) -> list[tuple[str, str]]:
    first, second = figures.same_place
    rows = [
        ("verdicts that survive the swap", _share(figures.consistent)),
        ("the first place twice, the second twice", f"{first}, {second}"),
        ("p-value of that", "none" if figures.position_p is None else f"{figures.position_p:.3g}"),
        ("mean lengths, characters", " and ".join(f"{one:.0f}" for one in figures.mean_lengths)),
    ]
    if figures.agreement is not None:
        one = figures.agreement
        rows.append(("agreement with people", f"{one.share:.1%} of {one.items} pairs, kappa {one.kappa:.3f}"))
    return rows


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"
