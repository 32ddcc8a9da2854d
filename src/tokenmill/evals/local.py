"""A model on this machine as a :class:`~tokenmill.evals.subject.Subject`.

Text is cut into tokens as lm-eval does it: a context and its continuation together, as one text, with blanks at the end
of the context counted as the continuation's. After a conversation the continuation is cut by itself, since it begins
where the model's own answer would.

With an engine that computes deterministically the answers are the same whatever the batch size. Without one, rounding
may turn an answer where two tokens are as good as equally likely.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from tokenmill.core.errors import OutOfContextError, UsageError
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.evals.subject import Ask, Call, Identity, Likelihood, Progress, Reply, Writing
from tokenmill.text.thinking import ThinkingSplitter, writes_thinking
from tokenmill.text.tokenizer import Tokenizer
from tokenmill.text.tool_calls import ToolCallParser, tool_formats
from tokenmill.text.tool_prompt import has_place_for_tools, tell_tools


class Facade(Protocol):
    """What is used of :class:`tokenmill.LLM`."""

    tokenizer: Tokenizer
    ctx_size: int

    @property
    def files(self) -> Any: ...

    def prompt_ids(self, prompt: Any, tools: Any = None) -> list[int]: ...

    def score_ids(self, prompts: Sequence[list[int]], starts: Sequence[int] | None = None) -> Sequence[Any]: ...

    def complete(self, prompts: Sequence[list[int]], params: SamplingParams) -> Sequence[Any]: ...


class LocalSubject:
    """An :class:`tokenmill.LLM`, asked for ``batch_size`` sequences at a time."""

    def __init__(self, llm: Facade, identity: Identity, *, batch_size: int = 16) -> None:
        if batch_size < 1:
            raise UsageError(f"a batch of {batch_size} is no batch: give 1 or more")
        self.llm, self._identity, self.batch_size = llm, identity, batch_size
        self._template = llm.files.template or llm.tokenizer.chat_template

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def has_chat(self) -> bool:
        return self._template is not None

    def likelihoods(self, pairs: Sequence[tuple[Ask, str]], progress: Progress | None = None) -> list[Likelihood]:
        """OutOfContextError where a pair is longer than the context; UsageError where a continuation is empty."""
        encoded = [self._encode(ask, continuation) for ask, continuation in pairs]
        for (ids, _), (_, continuation) in zip(encoded, pairs, strict=True):
            self._check_room(ids, 0, continuation)
        found: list[Likelihood] = []
        for begin, end in self._batches(len(pairs)):
            scores = self.llm.score_ids([ids for ids, _ in encoded[begin:end]], [s for _, s in encoded[begin:end]])
            found += [Likelihood(score.total, len(score.token_ids), score.greedy) for score in scores]
            if progress is not None:
                progress(end, len(pairs))
        return found

    def write(self, asks: Sequence[Ask], how: Writing, progress: Progress | None = None) -> list[list[Reply]]:
        """OutOfContextError where a prompt leaves no room for the answer."""
        prompts = [self._prompt(ask) for ask in asks]
        for ids, ask in zip(prompts, asks, strict=True):
            self._check_room(ids, how.max_tokens, ask.shown())
        params = SamplingParams(
            n=how.samples,
            temperature=how.temperature,
            max_tokens=how.max_tokens,
            stop=how.stop,
            seed=how.seed,
        )
        replies: list[list[Reply]] = []
        for begin, end in self._batches(len(asks), how.samples):
            done = self.llm.complete(prompts[begin:end], params)
            for completion, ask in zip(done, asks[begin:end], strict=True):
                replies.append([self._reply(choice, ask, completion.prompt_tokens) for choice in completion.choices])
            if progress is not None:
                progress(end, len(asks))
        return replies

    def _batches(self, count: int, each: int = 1) -> Iterator[tuple[int, int]]:
        size = max(1, self.batch_size // each)
        for begin in range(0, count, size):
            yield begin, min(begin + size, count)

    def _prompt(self, ask: Ask) -> list[int]:
        if ask.tools and ask.messages and not has_place_for_tools(self._template):
            return self.llm.prompt_ids(tell_tools(ask.messages, ask.tools))
        if ask.messages:
            return self.llm.prompt_ids(list(ask.messages), list(ask.tools) or None)
        return self.llm.prompt_ids(ask.text)

    def _encode(self, ask: Ask, continuation: str) -> tuple[list[int], int]:
        """Ids of both together, and where the continuation begins."""
        tokenizer = self.llm.tokenizer
        if ask.messages:
            prompt = self._prompt(ask)
            own = tokenizer.encode(continuation, add_special_tokens=False, parse_special=False)
            ids = [*prompt, *own]
        else:
            prompt = tokenizer.encode(ask.text.rstrip())
            ids = tokenizer.encode(ask.text + continuation)
        if not prompt:  # nothing to predict the first token from: the token that texts begin with, as lm-eval has it
            prompt = [prefix_id(tokenizer)]
            ids = prompt + ids
        if len(ids) <= len(prompt):
            raise UsageError(f"the continuation {continuation!r} has no token of its own after {ask.shown()[-60:]!r}")
        return ids, len(prompt)

    def _check_room(self, ids: list[int], more: int, what: str) -> None:
        if len(ids) + more > self.llm.ctx_size:
            raise OutOfContextError(
                f"{len(ids)} tokens and {more} to write do not fit the context of {self.llm.ctx_size}: {what[:60]!r}…; "
                "give fewer --shots or fewer --max-tokens"
            )

    def _reply(self, choice: Any, ask: Ask, prompt_tokens: int) -> Reply:
        text: str = choice.text
        if ask.messages and writes_thinking(self._template):
            splitter = ThinkingSplitter(inside=False)
            text = splitter.push(text)[1] + splitter.flush()[1]
        calls: tuple[Call, ...] = ()
        if ask.tools:
            text, calls = parse_calls(text, self._template if ask.messages else None, ask.tools)
        return Reply(text, str(choice.finish_reason), calls, prompt_tokens, len(choice.token_ids))


def prefix_id(tokenizer: Tokenizer) -> int:
    """The token before a text that has none: begin of text, else end of text. UsageError where there is neither."""
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return token_id
    raise UsageError("this tokenizer has neither a begin nor an end of text: nothing can be scored without a context")


def parse_calls(text: str, template: str | None, tools: Sequence[Mapping[str, Any]]) -> tuple[str, tuple[Call, ...]]:
    """A reply's words and its calls, as the model's chat template has them (Hermes' way where it says none)."""
    parser = ToolCallParser(tool_formats(template) or ("hermes",), tools)
    events = [*parser.push(text), *parser.flush()]
    calls = tuple(Call(event.name, event.arguments) for event in events if not isinstance(event, str))
    return "".join(event for event in events if isinstance(event, str)), calls
