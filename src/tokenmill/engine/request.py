"""One sequence being generated: what was asked, what came so far, why it ended. Plain Python, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from tokenmill.core.errors import TokenmillError
from tokenmill.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FinishReason = Literal["stop", "length", "repetition", "abort", "error"]


class Guide(Protocol):
    """A grammar that says which tokens may come next; ``text/grammar.py`` makes them."""

    def mask(self) -> npt.NDArray[np.bool_]:
        """Which tokens may come next, bool [V]."""
        ...

    def accept(self, token_id: int) -> None:
        """Take note of the token that was drawn."""
        ...

    @property
    def stopped(self) -> bool:
        """The text is complete and nothing can be added."""
        ...


@dataclass(frozen=True)
class Logprobs:
    """Of one position: the chosen token's log-probability, and the most likely tokens with theirs, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Request:
    """One sequence. The engine appends to ``output``; whoever reads the text may end it with :meth:`finish`."""

    prompt: list[int]
    params: SamplingParams
    seed: int | None = None
    eos_token_ids: frozenset[int] = frozenset()
    guide: Guide | None = None
    index: int = 0
    """Place among the requests of one call."""
    priority: int = 0
    """Smaller numbers are served first."""
    client: str = ""
    """Who asks; among equals the one with the fewest running requests is next."""
    deadline: float | None = None
    """Time (of the engine's clock) after which the request ends with an error."""
    cache_salt: str = ""
    """Prefixes are shared only between requests with the same salt."""
    cached_tokens: int = 0
    """How many tokens of the prompt were found in the prefix cache."""
    prompt_logprobs: list[Logprobs | None] = field(default_factory=list)
    """Of the prompt's tokens as far as they are computed, where ``params`` asks for them. What stands here from the
    start is not computed. Several answers to one prompt may share the list."""
    output: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: TokenmillError | None = None
    """Why this sequence, and no other of the batch, could not go on; ``finish_reason`` is then ``error``."""

    @property
    def unscored(self) -> int | None:
        """The first position whose output is still needed to score the prompt's next token; None if none is."""
        if self.params.prompt_logprobs is None or len(self.prompt_logprobs) >= len(self.prompt):
            return None
        return max(0, len(self.prompt_logprobs) - 1)

    def finish(self, reason: FinishReason) -> None:
        """End this sequence before the next step. The first reason stays."""
        self.finish_reason = self.finish_reason or reason

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end the answer."""
        own = frozenset() if self.params.ignore_eos else self.eos_token_ids
        return own | frozenset(self.params.stop_token_ids)


@dataclass(frozen=True)
class Step:
    """One new token of one request. ``finish_reason`` is set on the last; an ``error`` comes without a token."""

    request: Request
    token_id: int | None
    logprobs: Logprobs | None
    finish_reason: FinishReason | None
