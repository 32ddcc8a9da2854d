"""What a reward is: scores for finished completions. Rollouts hand over :class:`Sample`; rewards never see tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Sample:
    """One completion on its way to be scored, with all that was known when it was written."""

    messages: Sequence[Mapping[str, Any]]
    """The conversation before the completion; empty where the prompt is plain text."""
    prompt: str
    """The prompt as the model read it, its template rendered."""
    completion: str
    """What the model wrote, without control tokens; of several turns the last one."""
    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    """As they were drawn, in all turns, end tokens included; without what tools said."""
    finished: bool = True
    """The model ended the completion itself; False where it was cut off at the longest length."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """The data row's other columns: an answer, a schema, tests."""
    index: int = 0
    """The prompt's place in the data; the completions of one prompt share it."""
    turns: Sequence[Mapping[str, Any]] = ()
    """What followed ``messages``, where the model had tools: its turns with their ``tool_calls``, the results of role
    ``tool``, its last turn."""
    tool_calls: int = 0
    """Calls that were run, or refused; what is called in a last turn is neither."""
    tool_failures: int = 0
    """Of them, those whose tool raised, crashed, gave no number or took too long."""
    tool_invalid: int = 0
    """Of them, those of no tool on offer, with arguments that do not fit, or of broken JSON."""

    @property
    def context(self) -> list[Mapping[str, Any]]:
        """All that was said before ``completion``."""
        return [*self.messages, *self.turns[:-1]]


class Reward(Protocol):
    """Scores many completions at once, in order. A file's plain function is one, named as the function is."""

    name: str

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        """A number each, higher is better; None where there is no saying: the completion is then left out of the
        comparison with the others of its prompt and nothing is learned from it."""
        ...
