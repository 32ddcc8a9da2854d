"""What a rollout is once it is scored: completions with rewards, advantages and log-probabilities, and batches of it.

Everything here is plain numbers, so that a checkpoint in the middle of a rollout holds it as JSON, and goes on exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokenmill.align.rollouts import own_tokens
from tokenmill.data.batch import NO_LABEL
from tokenmill.data.rollout_batch import RolloutBatch

ALWAYS, SOMETIMES = ("sampler", "advantages"), ("old", "reference", "values", "returns")
"""Numbers of a token that a batch has, and those that some objectives ask for."""


@dataclass(frozen=True)
class Completion:
    """One completion and what is known of it. Lists of numbers have one for each token that the model drew."""

    prompt: int
    """The prompt's place in the data."""
    ids: list[int]
    sampler: list[float]
    """Log-probabilities as the engine drew it."""
    finished: bool
    reward: float | None = None
    """What it is worth in all; None where no reward could say."""
    advantages: list[float] = field(default_factory=list)
    """Of each token, so that a value head can give each its own; in a group all tokens share one."""
    old: list[float] | None = None
    """By the trainer before the first step on this rollout."""
    reference: list[float] | None = None
    values: list[float] | None = None
    """By a critic, where the objective has one, and what it should have said."""
    returns: list[float] | None = None
    learned: bool = True
    """False where it is only carried along (cut off, with ``policy.mask_truncated``)."""
    given: Sequence[Sequence[int]] = ()
    """Stretches of ``ids``, from and up to, that tools and template wrote: context, and no more."""

    @property
    def own(self) -> list[bool]:
        """Which of ``ids`` the model drew."""
        return own_tokens(len(self.ids), self.given)

    @property
    def count(self) -> int:
        """How many tokens the model drew."""
        return len(self.ids) - sum(end - start for start, end in self.given)


@dataclass(frozen=True)
class Rollout:
    """Completions in the order of their prompts, those of a prompt together; ``measured``: (sum, count) by name."""

    completions: list[Completion]
    measured: Mapping[str, tuple[float, float]]

    def state(self) -> dict[str, Any]:
        """JSON."""
        return {"completions": [asdict(one) for one in self.completions], "measured": dict(self.measured)}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Rollout:
        """What :meth:`state` gave."""
        measured = {name: (float(total), float(count)) for name, (total, count) in state["measured"].items()}
        return cls([Completion(**one) for one in state["completions"]], measured)


def batch_of(
    completions: Sequence[Completion],
    prompts: Sequence[Sequence[int]],
    *,
    per_token: bool,
    measured: Mapping[str, tuple[float, float]] | None = None,
) -> RolloutBatch:
    """Pack completions behind their prompts. ``prompts``: the ids of each one's."""
    tokens, labels, lengths = list[int](), list[int](), list[int]()
    rows: dict[str, list[float]] = {name: [] for name in (*ALWAYS, *SOMETIMES)}
    for one, prompt in zip(completions, prompts, strict=True):
        before = len(prompt) - 1
        tokens += [*prompt, *one.ids[:-1]]
        own = one.own
        labels += [NO_LABEL] * before
        labels += [token if mine and one.learned else NO_LABEL for token, mine in zip(one.ids, own, strict=True)]
        lengths.append(before + len(one.ids))
        for name, row in rows.items():
            values = iter(getattr(one, name) or [0.0] * one.count)
            row += [0.0] * before + [next(values) if mine else 0.0 for mine in own]

    def tensor(name: str) -> Tensor:
        return torch.tensor(rows[name], dtype=torch.float32)

    known = [name for name in SOMETIMES if completions and getattr(completions[0], name) is not None]
    others: dict[str, Any] = {f"{name}_T": tensor(name) for name in known}
    return RolloutBatch(
        tokens_T=torch.tensor(tokens),
        labels_T=torch.tensor(labels),
        lengths=lengths,
        indices=[one.prompt for one in completions],
        sampler_T=tensor("sampler"),
        advantages_T=tensor("advantages"),
        per_token=per_token,
        measured=measured or {},
        **others,
    )


def with_advantages(completions: Sequence[Completion], advantages: Sequence[float]) -> list[Completion]:
    """Every token of a completion gets the completion's."""
    return [replace(one, advantages=[value] * one.count) for one, value in zip(completions, advantages, strict=True)]
