"""What is measured: something that continues texts, answers conversations and says how likely a continuation is.

A model on this machine (:mod:`tokenmill.evals.local`) and a server elsewhere (:mod:`tokenmill.evals.remote`) look the
same from here, so a task knows nothing of either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Ask:
    """What a model is given: a text to go on with, or a conversation to answer (then ``text`` is not used)."""

    text: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()

    def shown(self) -> str:
        """For a person."""
        if not self.messages:
            return self.text
        return "\n".join(f"[{one['role']}] {one['content']}" for one in self.messages)


@dataclass(frozen=True)
class Likelihood:
    """How likely a continuation is after its context."""

    logprob: float
    """Natural logarithm, the sum over its tokens."""
    tokens: int
    greedy: bool
    """Whether temperature 0 would have written it."""


@dataclass(frozen=True)
class Call:
    """A function that the model wants called."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """What a model wrote. ``text`` is without thinking and without calls."""

    text: str
    finish_reason: str = "stop"
    calls: tuple[Call, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Writing:
    """How answers are written."""

    max_tokens: int = 256
    temperature: float = 0.0
    """0 takes the most likely token, exactly."""
    stop: tuple[str, ...] = ()
    samples: int = 1
    """Answers to each ask."""
    seed: int = 0


@dataclass(frozen=True)
class Identity:
    """What a model is, for the record and for the cache."""

    name: str
    content: str
    """Hash of weights, tokenizer, template and adapters; empty where it cannot be known (a server)."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else its answers follow from: dtype, context, how it computes."""


class Subject(Protocol):
    """A model under measurement. Answers come in the order of what was asked."""

    @property
    def identity(self) -> Identity: ...

    @property
    def has_chat(self) -> bool:
        """Whether it can be given conversations."""
        ...

    def likelihoods(self, pairs: Sequence[tuple[Ask, str]], progress: Progress | None = None) -> list[Likelihood]:
        """How likely each continuation is after its ask."""
        ...

    def write(self, asks: Sequence[Ask], how: Writing, progress: Progress | None = None) -> list[list[Reply]]:
        """``how.samples`` replies to each ask."""
        ...
