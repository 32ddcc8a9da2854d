"""Questions of two turns, and a model's answers to them: the second turn follows on what it said to the first.

A set is JSONL: ``{"id", "category", "turns": [first, second]}``; one turn or several are allowed too. One of our own
ships with tokenmill (``sets/two_turns.jsonl``), in the eight categories of MT-Bench.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from tokenmill.core.errors import UsageError, did_you_mean
from tokenmill.data.files import Broken, read_rows
from tokenmill.evals.subject import Ask, Progress, Subject, Writing

KEYS = ("id", "category", "turns")


@dataclass(frozen=True)
class Question:
    """What a person says, turn by turn."""

    id: str
    category: str
    turns: tuple[str, ...]


def shipped_questions() -> Path:
    """The set that comes with tokenmill."""
    return Path(str(resources.files("tokenmill.evals.judge"))) / "sets" / "two_turns.jsonl"


def read_questions(path: Path) -> list[Question]:
    """The questions of a file. UsageError names the first line that is none."""
    found: list[Question] = []
    for row in read_rows(path):
        where = f"{path}:{row.line}"
        if isinstance(row, Broken):
            raise UsageError(f"{where}: {row.problem}")
        found.append(_question(row.value, where))
    if not found:
        raise UsageError(f"{path}: there is no question")
    if len({one.id for one in found}) < len(found):
        raise UsageError(f"{path}: two questions have the same id")
    return found


def _question(row: Any, where: str) -> Question:
    for key in row:
        if key not in KEYS:
            raise UsageError(f"{where}: unknown key {key!r}{did_you_mean(key, KEYS)}")
    turns = row.get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(one, str) and one.strip() for one in turns):
        raise UsageError(f"{where}: turns must be a list of texts")
    return Question(str(row.get("id", where)), str(row.get("category", "")), tuple(turns))


def answer_questions(
    subject: Subject, questions: Sequence[Question], how: Writing, progress: Progress | None = None
) -> list[tuple[str, ...]]:
    """A model's answers, one a turn. UsageError: it has no chat template."""
    if not subject.has_chat:
        raise UsageError(f"{subject.identity.name} has no chat template: it cannot be asked in turns")
    said: list[tuple[str, ...]] = [() for _ in questions]
    total, before = sum(len(one.turns) for one in questions), 0
    for turn in range(max(len(one.turns) for one in questions)):
        chosen = [n for n, one in enumerate(questions) if turn < len(one.turns)]
        asks = [Ask(messages=conversation(questions[n], said[n], turn)) for n in chosen]
        done = subject.write(asks, how, None if progress is None else _shifted(progress, before, total))
        for n, replies in zip(chosen, done, strict=True):
            said[n] = (*said[n], replies[0].text.strip())
        before += len(chosen)
    return said


def conversation(question: Question, answers: Sequence[str], turn: int) -> tuple[dict[str, str], ...]:
    """The messages up to and with the person's words of this turn."""
    messages: list[dict[str, str]] = []
    for said, answer in zip(question.turns[:turn], answers, strict=False):
        messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
    return (*messages, {"role": "user", "content": question.turns[turn]})


def request_text(question: Question) -> str:
    """The whole request, for a judge."""
    if len(question.turns) == 1:
        return question.turns[0]
    return "\n\n".join(f"Turn {n}: {said}" for n, said in enumerate(question.turns, 1))


def answer_text(answers: Sequence[str]) -> str:
    """All answers of a conversation, for a judge."""
    if len(answers) == 1:
        return answers[0]
    return "\n\n".join(f"To turn {n}: {said}" for n, said in enumerate(answers, 1))


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)
