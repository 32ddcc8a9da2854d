"""What became of a reward's calls: a number each, or why there is none. What failed is never a zero, which would teach
the model that the answer was bad."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tokenmill.align.rewards.base import Sample
from tokenmill.core.errors import ConfigError, NetworkError

FailureKind = Literal["no_say", "not_a_number", "raised", "timed_out", "refused"]


@dataclass(frozen=True)
class Failure:
    """Why a completion has no reward."""

    kind: FailureKind
    """``no_say``: the reward returned None; ``refused``: a judge would not, or its answer held no score."""
    message: str = ""


Outcome = float | Failure


class Scorer(Protocol):
    """A reward that says why it has no number. One that only returns None will do as well (`base.Reward`)."""

    name: str

    def __call__(self, samples: Sequence[Sample]) -> Sequence[Outcome | None]:
        """One outcome a sample, in order."""
        ...


def outcome(value: Any) -> Outcome:
    """What a reward returned, as a finite number or the failure that it is."""
    if isinstance(value, Failure):
        return value
    if value is None:
        return Failure("no_say")
    if isinstance(value, bool | int | float) or hasattr(value, "__float__"):  # numpy's and torch's scalars too
        number = float(value)
        return number if math.isfinite(number) else Failure("not_a_number", str(number))
    return Failure("not_a_number", f"{type(value).__name__}: {value!r}"[:200])


def each(score: Callable[[Sample], Outcome | None], samples: Sequence[Sample]) -> list[Outcome]:
    """One by one, so that what one completion breaks costs that one alone."""
    return [_guarded(score, sample) for sample in samples]


def _guarded(score: Callable[[Sample], Outcome | None], sample: Sample) -> Outcome:
    try:
        return outcome(score(sample))
    except (ConfigError, NetworkError):  # a mistake in the recipe or the data, a server that is gone: of all of them
        raise
    except Exception as error:
        return Failure("raised", f"{type(error).__name__}: {error}"[:400])
