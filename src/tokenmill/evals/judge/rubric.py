"""One model's answers marked from 1 to 10, turn by turn, as MT-Bench marks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenmill.evals.judge.judge import Judge
from tokenmill.evals.judge.questions import Question, conversation
from tokenmill.evals.subject import Progress
from tokenmill.evals.tasks.aggregate import mean_stderr


@dataclass(frozen=True)
class Mark:
    """What a judge gave for the answer to one turn."""

    question: Question
    turn: int
    answer: str
    mark: float | None
    """None where its reply was unreadable."""
    words: str


def mark_answers(
    judge: Judge, questions: Sequence[Question], answers: Sequence[Sequence[str]], progress: Progress | None = None
) -> list[Mark]:
    """Marks in order: question by question, turn by turn."""
    places = [
        (question, said, turn)
        for question, said in zip(questions, answers, strict=True)
        for turn in range(len(question.turns))
    ]
    shown = [
        ("\n".join(f"{m['role']}: {m['content']}" for m in conversation(question, said, turn)), said[turn])
        for question, said, turn in places
    ]
    found = judge.marks(shown, progress)
    return [
        Mark(question, turn, said[turn], mark, words)
        for (question, said, turn), (mark, words) in zip(places, found, strict=True)
    ]


def summary(marks: Sequence[Mark]) -> dict[str, object]:
    """Mean mark with its standard error, by turn and by category."""
    read = [one for one in marks if one.mark is not None]

    def mean(chosen: Sequence[Mark]) -> float:
        return mean_stderr([one.mark for one in chosen if one.mark is not None])[0]

    turns = sorted({one.turn for one in read})
    categories = sorted({one.question.category for one in read} - {""})
    value, stderr = mean_stderr([one.mark for one in read if one.mark is not None]) if read else (None, None)
    return {
        "answers": len(marks),
        "unreadable": len(marks) - len(read),
        "mark": value,
        "stderr": stderr,
        "turns": {str(turn + 1): mean([one for one in read if one.turn == turn]) for turn in turns},
        "categories": {name: mean([one for one in read if one.question.category == name]) for name in categories},
    }
