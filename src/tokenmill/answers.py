"""What comes out of a model for a person: pieces of a streamed answer, whole answers, scores of a text.

Token ids come from the engine, one :class:`~tokenmill.engine.request.Step` at a time; here they become text.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tokenmill.core.errors import TokenmillError
from tokenmill.engine.request import FinishReason, Logprobs, Request, Step
from tokenmill.text.detokenizer import StreamingDetokenizer
from tokenmill.text.stop import StopMatcher
from tokenmill.text.tokenizer import Tokenizer


@dataclass
class Stats:
    """Tokens and seconds of one prompt: ``prompt_s`` until its first new token, ``decode_s`` from there on."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """How many of them an earlier prompt had computed already."""
    completion_tokens: int = 0
    prompt_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True)
class Piece:
    """A bit of a streamed answer. The last has a ``finish_reason`` and the ``stats``."""

    text: str
    index: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[Logprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stats: Stats | None = None
    error: TokenmillError | None = None
    prompt_logprobs: tuple[Logprobs | None, ...] = ()
    """Of the whole prompt, if asked for; in the first piece of an answer. The first token has none."""


@dataclass
class Choice:
    """One of the ``n`` answers to a prompt."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] | None = None
    finish_reason: FinishReason | None = None
    error: TokenmillError | None = None
    """Why this answer broke off while others went on (``finish_reason`` is ``error``). A lone answer raises it."""


@dataclass
class Completion:
    """The answers to one prompt; the first one's fields are at hand directly."""

    choices: list[Choice]
    prompt_tokens: int
    stats: Stats
    prompt_logprobs: list[Logprobs | None] | None = None
    """One a token of the prompt, if asked for. The first has none: nothing comes before it."""

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.choices[0].token_ids

    @property
    def logprobs(self) -> list[Logprobs] | None:
        return self.choices[0].logprobs

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.choices[0].finish_reason


@dataclass(frozen=True)
class Score:
    """How likely a model finds a text, token by token."""

    token_ids: list[int]
    logprobs: list[Logprobs | None]
    """None for a first token that has nothing before it."""

    @property
    def total(self) -> float:
        """The log-probability of the text: the sum over its tokens that have one."""
        return sum(one.logprob for one in self.logprobs if one is not None)

    @property
    def greedy(self) -> bool:
        """Whether each of these tokens is the one that temperature 0 would have taken."""
        return all(one.top[0][0] == one.token_id for one in self.logprobs if one is not None)


class Answer:
    """Turns the tokens of one request into text, ends it where a stop text shows, and counts what it took."""

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        params = request.params
        self.request = request
        self.stats = Stats(prompt_tokens=len(request.prompt))
        self._started = time.perf_counter()
        self._said_prompt = False
        self._detokenizer = StreamingDetokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens)
        self._matcher = StopMatcher(params.stop, include_stop=params.include_stop_str_in_output)

    def push(self, step: Step) -> Piece:
        """The text that this token makes certain; with the last one, the stats."""
        request, params, matcher = self.request, self.request.params, self._matcher
        self._count()
        ends = step.token_id in request.stop_ids and step.finish_reason == "stop"
        token_ids = () if step.token_id is None else (step.token_id,)
        said = () if ends and not params.include_stop_str_in_output else token_ids
        text = matcher.push("".join(map(self._detokenizer.push, said)))
        if matcher.matched is None and step.finish_reason is not None:
            text += matcher.push(self._detokenizer.flush())
            text += matcher.flush() if matcher.matched is None else ""
        reason = step.finish_reason
        if matcher.matched is not None:
            request.finish("stop")
            reason = "stop"
        logprobs = () if step.logprobs is None else (step.logprobs,)
        stats = None if reason is None else self.stats
        return Piece(text, request.index, token_ids, logprobs, reason, stats, request.error, self._prompt_logprobs())

    def _prompt_logprobs(self) -> tuple[Logprobs | None, ...]:
        if self._said_prompt:
            return ()
        self._said_prompt = True
        return tuple(self.request.prompt_logprobs)

    def ended(self) -> Piece:
        """The last piece of a request that ended without a token: none was asked for, or its reader went."""
        return Piece("", self.request.index, (), (), self.request.finish_reason, self.stats, self.request.error)

    def _count(self) -> None:
        stats, seconds = self.stats, time.perf_counter() - self._started
        stats.prompt_s = stats.prompt_s or seconds
        stats.decode_s = seconds - stats.prompt_s
        stats.cached_tokens = self.request.cached_tokens
        stats.completion_tokens = len(self.request.output)


def collect(pieces: Iterable[Piece], prompt_tokens: Sequence[int], n: int) -> list[Completion]:
    """Whole answers out of their pieces: one Completion a prompt, with ``n`` choices each."""
    choices = [Choice(number % n) for number in range(len(prompt_tokens) * n)]
    stats = [Stats() for _ in choices]
    scores: list[tuple[Logprobs | None, ...]] = [() for _ in prompt_tokens]
    for piece in pieces:
        choice = choices[piece.index]
        choice.text += piece.text
        scores[piece.index // n] = scores[piece.index // n] or piece.prompt_logprobs
        choice.token_ids += piece.token_ids
        if piece.logprobs:
            choice.logprobs = [*(choice.logprobs or []), *piece.logprobs]
        if piece.stats is not None:
            choice.finish_reason, choice.error = piece.finish_reason, piece.error
            stats[piece.index] = piece.stats
    return [
        Completion(choices[i * n : (i + 1) * n], count, stats[i * n], list(scores[i]) or None)
        for i, count in enumerate(prompt_tokens)
    ]
