"""Two answers to a request before a judge, once in each order.

A preference counts only if it survives the swap: A must be better whether it stands first or second, or better once and
equal once is a tie too (as MT-Bench has it). So a judge that looks at the place says "tie" of everything, and how often
it named the same place twice tells that it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tokenmill.evals.judge.judge import Judge, Slot
from tokenmill.evals.subject import Progress

Verdict = Literal["first", "second", "tie"]
_OF = {"A": "first", "B": "second", "C": "tie"}
_SWAPPED = {"A": "second", "B": "first", "C": "tie"}


@dataclass(frozen=True)
class Pair:
    """Two answers to the same request. ``id`` ties a verdict to what people said of the pair."""

    id: str
    request: str
    first: str
    second: str
    category: str = ""


@dataclass(frozen=True)
class Duel:
    """What a judge said of a pair."""

    pair: Pair
    slots: tuple[Slot | None, Slot | None]
    """The place that it preferred: with the first answer shown first, and swapped."""
    words: tuple[str, str]

    @property
    def verdict(self) -> Verdict | None:
        """What survives the swap; None where a reply was unreadable."""
        as_given, swapped = self.slots
        if as_given is None or swapped is None:
            return None
        found = _OF[as_given]
        return found if found == _SWAPPED[swapped] else "tie"  # type: ignore[return-value]

    @property
    def consistent(self) -> bool:
        """Whether both orders led to the same verdict."""
        as_given, swapped = self.slots
        return as_given is not None and swapped is not None and _OF[as_given] == _SWAPPED[swapped]

    @property
    def outcome(self) -> float | None:
        """1 for the first answer, 0 for the second, a half for a tie."""
        return None if self.verdict is None else {"first": 1.0, "second": 0.0, "tie": 0.5}[self.verdict]


def duel(judge: Judge, pairs: Sequence[Pair], progress: Progress | None = None) -> list[Duel]:
    """The judge's verdicts, in order; each pair is shown twice."""
    shown = [(p.request, p.first, p.second) for p in pairs] + [(p.request, p.second, p.first) for p in pairs]
    said = judge.better(shown, progress)
    count = len(pairs)
    return [
        Duel(pair, (said[n][0], said[n + count][0]), (said[n][1], said[n + count][1])) for n, pair in enumerate(pairs)
    ]
