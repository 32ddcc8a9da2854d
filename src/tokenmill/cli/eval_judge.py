"""``tokenmill eval judge``: two models, or pairs of answers, before a judge; or one model's answers marked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli.output import Json, columns, emit, note, step_progress
from tokenmill.cli.subjects import is_remote
from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from tokenmill.evals.judge import Duel, Figures, Judge, Pair, Question

EPILOG = """\b
Examples:
  tokenmill eval judge smollm2:135m ./tuned --judge big-model@https://api.example.com/v1 --key-variable API_KEY
  tokenmill eval judge smollm2:135m --judge smollm2:135m --by likelihood
  tokenmill eval judge --pairs answers.jsonl --labels answers.jsonl.labels.jsonl --judge big-model@http://localhost:11434/v1
"""


def eval_judge(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[A [B]]", help="Two models to compare, or one to mark; NAME@URL for one of a server."),
    ] = None,
    judge: Annotated[str, typer.Option(metavar="MODEL", help="Who judges: a model here, or NAME@URL.")] = "",
    questions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows with turns; default: 16 questions of two turns.")
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(metavar="FILE", help="Judge these answers: rows as `tokenmill label` takes them.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="People's verdicts on --pairs, to compare the judge with.")
    ] = None,
    rubric: Annotated[Path | None, typer.Option(metavar="FILE", help="What counts, as text for the judge.")] = None,
    by: Annotated[
        str, typer.Option(metavar="words|likelihood", help="The judge writes a verdict, or its likeliest one counts.")
    ] = "words",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions or pairs.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, and of a judge's reply.")] = 256,
    key_variable: Annotated[
        str | None, typer.Option(metavar="NAME", help="The environment variable that holds the judge's key.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of answers and verdicts.")] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the folder of results goes.")] = Path("evals"),
    as_json: Json = False,
) -> None:
    """Let a model judge answers: every pair in both orders, ties allowed, length accounted for."""
    named = models or []
    _check(named, judge, pairs, labels, questions, by)
    from tokenmill.cli.subjects import open_subject
    from tokenmill.core.paths import home
    from tokenmill.evals.judge import Judge
    from tokenmill.evals.judge.judge import RUBRIC

    cache = home() / "cache" / "judge"
    text = rubric.read_text(encoding="utf-8").strip() if rubric is not None else RUBRIC
    asked = _Asked(named, judge, cache, seed, max_tokens, out)
    if pairs is not None:
        given, people = _given(pairs, labels, limit)
    else:
        chosen, answers = asked.answers(questions, limit)
    # the models that answered are out of memory before the judge comes in
    subject = open_subject(judge, cache=cache, key_variable=key_variable, exact=False)
    judging = Judge(subject, "likelihood" if by == "likelihood" else "words", text, max_tokens, seed)
    if pairs is not None:
        _duels(asked, judging, (f"{pairs}, first", "second"), given, people, as_json)
    elif len(named) == 2:
        _duels(asked, judging, (named[0], named[1]), _pairs_of(chosen, answers), None, as_json)
    else:
        _marks(asked, judging, chosen, answers[0], as_json)


def _check(
    models: list[str], judge: str, pairs: str | None, labels: Path | None, questions: Path | None, by: str
) -> None:
    if not judge:
        raise UsageError("say who judges: --judge MODEL, or --judge NAME@http://…/v1 for a model of a server")
    if by not in ("words", "likelihood"):
        raise UsageError(f"--by {by}: give words or likelihood")
    if by == "likelihood" and is_remote(judge):
        raise UsageError("--by likelihood needs a judge on this machine: servers score no conversations")
    if pairs is None and len(models) not in (1, 2):
        raise UsageError("give two models to compare, one to mark, or --pairs with answers")
    if pairs is not None and (models or questions is not None):
        raise UsageError("--pairs has its answers already: give no model and no --questions")
    if labels is not None and pairs is None:
        raise UsageError("--labels are verdicts on --pairs")
    if labels is not None and not labels.exists():
        raise UsageError(f"--labels {labels}: no such file")


class _Asked:
    """What was asked for, and where the results go."""

    def __init__(self, models: list[str], judge: str, cache: Path, seed: int, max_tokens: int, out: Path) -> None:
        self.models, self.judge, self.cache, self.seed = models, judge, cache, seed
        self.max_tokens, self.out = max_tokens, out

    def answers(self, questions: Path | None, limit: int | None) -> tuple[list[Question], list[list[tuple[str, ...]]]]:
        """The questions, and each model's answers to them."""
        from tokenmill.cli.subjects import open_subject
        from tokenmill.evals.judge.questions import answer_questions, read_questions, shipped_questions
        from tokenmill.evals.subject import Writing

        chosen = read_questions(questions or shipped_questions())[:limit]
        found = []
        for name in self.models:
            subject = open_subject(name, cache=self.cache, exact=False)
            with step_progress(f"answers of {name}") as progress:
                how = Writing(max_tokens=self.max_tokens, seed=self.seed)
                found.append(answer_questions(subject, chosen, how, progress))
        return chosen, found

    def folder(self, name: str) -> Path:
        """A new one for the results."""
        from tokenmill.evals.tasks.folder import new_folder

        folder = new_folder(self.out, f"judge-{name}")
        folder.mkdir(parents=True)
        return folder

    def facts(self, judge: Judge) -> dict[str, Any]:
        """What the results follow from."""
        return {
            "models": self.models,
            "judge": judge.subject.identity.name,
            "by": judge.by,
            "rubric": judge.rubric,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
        }


def _given(path: str, labels: Path | None, limit: int | None) -> tuple[list[Pair], dict[str, str] | None]:
    from tokenmill.align.label import LabelLog, read_items
    from tokenmill.align.label.log import majorities
    from tokenmill.evals.judge import Pair

    items = read_items(path)[:limit]
    found = [Pair(one.id, _said(one.prompt), _said(one.answers[0]), _said(one.answers[1])) for one in items]
    return found, None if labels is None else majorities(LabelLog(labels).labels)


def _said(text: Any) -> str:
    if isinstance(text, str):
        return text
    return "\n".join(f"{one['role']}: {one.get('content', '')}" for one in text)


def _pairs_of(questions: list[Question], answers: list[list[tuple[str, ...]]]) -> list[Pair]:
    from tokenmill.evals.judge import Pair
    from tokenmill.evals.judge.questions import answer_text, request_text

    return [
        Pair(one.id, request_text(one), answer_text(a), answer_text(b), one.category)
        for one, a, b in zip(questions, *answers, strict=True)
    ]


def _duels(
    asked: _Asked,
    judge: Judge,
    names: tuple[str, str],
    pairs: list[Pair],
    people: dict[str, str] | None,
    as_json: bool,
) -> None:
    from tokenmill.evals.judge import duel, figures_of
    from tokenmill.evals.judge.report import warnings_of, write_duels

    with step_progress("verdicts") as progress:
        duels = duel(judge, pairs, progress)
    figures = figures_of(duels, people)
    folder, facts = asked.folder(names[0] if asked.models else "pairs"), asked.facts(judge)
    if not asked.models:
        _write_labels(folder / "labels.jsonl", judge.subject.identity.name, duels)
    page = write_duels(folder, names, judge.subject.identity.name, duels, figures, facts)
    for warning in warnings_of(figures):
        note(f"warning: {warning}")
    emit({**facts, **figures.as_dict(), "folder": str(folder), "report": str(page)}, as_json, _text(figures, page))


def _write_labels(path: Path, rater: str, duels: list[Duel]) -> None:
    """The judge's verdicts as `tokenmill label` writes people's, so that its measures and pairs take them."""
    from tokenmill.align.label import Label, LabelLog

    log = LabelLog(path)
    for one in duels:
        if one.verdict is not None:
            log.add(Label(one.pair.id, rater, one.verdict, left=0))


def _text(figures: Figures, page: Path) -> str:
    def share(value: float | None) -> str:
        return "none" if value is None else f"{value:.1%}"

    lines = [
        f"win rate           {share(figures.win_rate)} ± {share(figures.stderr)}",
        f"  at equal length  {share(figures.length_adjusted)}",
        f"wins, ties, losses {figures.wins}, {figures.ties}, {figures.losses} of {figures.pairs} pairs",
        f"survive the swap   {share(figures.consistent)}",
    ]
    if figures.agreement is not None:
        one = figures.agreement
        lines.append(f"as people say      {one.share:.1%} of {one.items} pairs, kappa {one.kappa:.3f}")
    if figures.categories:
        lines += ["", columns(("category", "win rate"), [(k, share(v)) for k, v in figures.categories.items()])]
    return "\n".join([*lines, f"report             {page}"])


def _marks(
    asked: _Asked, judge: Judge, questions: list[Question], answers: list[tuple[str, ...]], as_json: bool
) -> None:
    from tokenmill.evals.judge import mark_answers
    from tokenmill.evals.judge.report import write_marks
    from tokenmill.evals.judge.rubric import summary

    with step_progress("marks") as progress:
        marks = mark_answers(judge, questions, answers, progress)
    found: dict[str, Any] = summary(marks)
    name, facts = asked.models[0], asked.facts(judge)
    folder = asked.folder(name)
    page = write_marks(folder, name, judge.subject.identity.name, marks, found, facts)
    mark = "none" if found["mark"] is None else f"{found['mark']:.2f} ± {found['stderr']:.2f}"
    rows = [(f"turn {turn}", f"{value:.2f}") for turn, value in found["turns"].items()]
    rows += [(category, f"{value:.2f}") for category, value in found["categories"].items()]
    text = (
        f"mark        {mark} of 10\nunreadable  {found['unreadable']} of {found['answers']} answers\n\n"
        f"{columns(('part', 'mark'), rows)}\nreport      {page}"
    )
    emit({**facts, **found, "folder": str(folder), "report": str(page)}, as_json, text)
