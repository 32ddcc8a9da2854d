"""The policy writes in several turns: it calls a tool, the tool runs, its result goes into the context, it goes on.

All conversations that are to go on do so in one run of the engine, over the blocks of the cache that their beginnings
filled. Tokens in, tokens out: see :mod:`tokenmill.align.turns`. What tools and template wrote is marked as given:
nothing is learned from it, and no log-probability, distance or advantage is of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tokenmill.align.rollouts import Ask, Talk, Writer, Written
from tokenmill.align.turns import Reply, Said, Turns
from tokenmill.core.errors import TemplateError
from tokenmill.core.log import get_logger
from tokenmill.data.formats import Message
from tokenmill.text.tokenizer import Tokenizer
from tokenmill.tools.box import Result, ToolBox, problem
from tokenmill.train.plan import Plan

_log = get_logger(__name__)
MOST_CALLS = 16
"""Calls of one turn; a model that writes more of them is told that it is too many."""


@dataclass
class _Open:
    """A conversation that is being written."""

    ask: Ask
    ids: list[int] = field(default_factory=list)
    """All that follows the prompt."""
    logprobs: list[float] = field(default_factory=list)
    given: list[tuple[int, int]] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    last: int = 0
    """Where in ``ids`` the last turn begins."""
    turns: int = 0
    seconds: float = 0.0
    finished: bool = False
    """The model ended its last turn by itself."""
    said: Said | None = None
    """Its last turn, where that asks for something; the conversation is over otherwise."""


class Conversations:
    """Writes as :class:`~tokenmill.align.rollouts.Writer` does, with tools."""

    def __init__(self, writer: Writer, box: ToolBox, turns: Turns, tokenizer: Tokenizer) -> None:
        self.writer, self.box, self.turns, self.tokenizer = writer, box, turns, tokenizer
        self.room = writer.config.completion_tokens

    def write(self, asked: Sequence[Ask]) -> list[Written]:
        """Conversations by the weights as they are now, in order. TokenmillError where the model cannot go on."""
        every = [_Open(ask) for ask in asked]
        going = every
        for turn in range(self.box.config.turns):
            asks = [
                Ask([*one.ask.prompt_ids, *one.ids], _seed(one.ask.seed, turn), self.room - len(one.ids))
                for one in going
            ]
            for one, written in zip(going, self.writer.write(asks, refresh=turn == 0), strict=True):
                self._take(one, written)
            going = [one for one in going if one.said is not None]
            if not going or turn + 1 == self.box.config.turns:
                break
            going = self._answered(going)
        for one in going:  # what was asked for is not there: the conversation was cut off
            one.finished = False
        return [_written(one) for one in every]

    def _take(self, one: _Open, written: Written) -> None:
        said = self.turns.read(written.ids, [*one.ask.prompt_ids, *one.ids][-16:], one.ask.tools)
        one.last = len(one.ids)
        one.ids += written.ids
        one.logprobs += written.logprobs
        one.turns += 1
        one.finished = written.finished
        one.said = said if written.finished and (said.calls or said.broken) else None
        one.messages.append(said.message(len(one.results)))

    def _answered(self, going: Sequence[_Open]) -> list[_Open]:
        """Run what was called; those that have room for the results and another turn."""
        began = time.perf_counter()
        todo = [(one, call) for one in going if one.said for call in one.said.calls[:MOST_CALLS]]
        found = iter(self.box.run([call for _, call in todo], [one.ask.tools for one, _ in todo]))
        seconds = (time.perf_counter() - began) / max(len(going), 1)
        left: list[_Open] = []
        for one in going:
            assert one.said is not None
            first, calls = len(one.results), one.said.calls
            results = [next(found) for _ in calls[:MOST_CALLS]]
            results += [problem("invalid", f"more than {MOST_CALLS} calls at once") for _ in calls[MOST_CALLS:]]
            if one.said.broken:
                results = [problem("invalid", "a call is JSON with a name and arguments, which this is not")]
            one.results += results
            one.seconds += seconds
            names = [call.name for call in calls] or ["call"]
            replies = [Reply(name, self._cut(result.text)) for name, result in zip(names, results, strict=True)]
            between = self._between(replies)
            if between is None or len(one.ids) + len(between) >= self.room:
                one.finished = False
                continue
            one.messages += [reply.message(first + n) for n, reply in enumerate(replies)]
            one.given.append((len(one.ids), len(one.ids) + len(between)))
            one.ids += between
            left.append(one)
        return left

    def _between(self, replies: Sequence[Reply]) -> list[int] | None:
        try:
            return self.turns.between(replies)
        except TemplateError as error:  # one answer of a tool's is no reason to end a run
            _log.warning("a conversation ends at a tool's result: %s", error)
            return None

    def _cut(self, text: str) -> str:
        most = self.box.config.result_tokens
        ids = self.tokenizer.encode(text, add_special_tokens=False, parse_special=False)
        return text if len(ids) <= most else f"{self.tokenizer.decode(ids[:most])} … (cut off)"


def with_tools(plan: Plan, writer: Writer) -> Conversations:
    """The writer of a plan whose policy calls tools. ConfigError: a tool that cannot be used, a template that cannot
    go on behind one's result."""
    box = ToolBox(plan.recipe.tools)
    turns = Turns(plan.tokenizer, box.schemas, plan.recipe.data.chat_template)
    return Conversations(writer, box, turns, plan.tokenizer)


def told_of(talk: Talk | None) -> dict[str, Any]:
    """What rewards are told of a conversation with tools."""
    if talk is None:
        return {}
    counts = {"tool_calls": talk.calls, "tool_failures": talk.failures, "tool_invalid": talk.invalid}
    return {"turns": talk.messages, **counts}


def talk_metrics(written: Sequence[Written]) -> dict[str, tuple[float, float]]:
    """(sum, count) by name: turns and calls of a conversation, shares of calls that failed; nothing without tools."""
    talks = [one.talk for one in written if one.talk is not None]
    if not talks:
        return {}
    calls, count = sum(talk.calls for talk in talks), len(talks)
    found: dict[str, tuple[float, float]] = {
        "turns/mean": (sum(talk.turns for talk in talks), count),
        "tools/calls": (calls, count),
        "tools/tokens": (sum(len(one.ids) - len(one.logprobs) for one in written), count),
        "tools/seconds": (sum(talk.seconds for talk in talks), count),
    }
    for name in ("failures", "timed_out", "invalid"):
        found[f"tools/{name}"] = (sum(getattr(talk, name) for talk in talks), max(calls, 1))
    return found


def _seed(seed: int, turn: int) -> int:
    """The seed of a turn; one that all turns shared would have them draw the same numbers."""
    if not turn:
        return seed
    return int(np.random.SeedSequence([seed, turn]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _written(one: _Open) -> Written:
    kinds = [result.kind for result in one.results]
    talk = Talk(
        messages=one.messages,
        last=one.last,
        turns=one.turns,
        calls=len(kinds),
        failures=kinds.count("failed") + kinds.count("timed_out"),
        timed_out=kinds.count("timed_out"),
        invalid=kinds.count("invalid"),
        seconds=one.seconds,
    )
    return Written(one.ids, one.logprobs, one.finished, one.given, talk)
