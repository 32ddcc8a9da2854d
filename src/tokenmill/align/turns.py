"""A model's own way of calling tools, as tokens: reading the calls in what it wrote, writing what comes back.

What the model wrote is never rendered and encoded again. Between two of its turns stands what the template writes: the
end of its turn behind the end token, the tools' results, the beginning of its next turn. That text is taken from a
conversation of the same shape in which it asked for the same tools; nothing of it depends on what was said before.

Sources: the fault that this avoids is TRL's #5224 (a turn that is encoded again has other tokens than were drawn).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenmill.core.errors import ConfigError, TemplateError
from tokenmill.data.formats import Message
from tokenmill.data.render import Renderer, behind_end_token
from tokenmill.text.thinking import OPEN, ThinkingSplitter, writes_thinking
from tokenmill.text.tokenizer import Tokenizer
from tokenmill.text.tool_calls import MARKS, ToolCall, ToolCallParser, ToolFormat, tool_formats

_QUESTION: Message = {"role": "user", "content": "?"}
_PROBE = "2718281828"


@dataclass(frozen=True)
class Said:
    """A turn of the model's."""

    words: str
    """What it says beside thinking and calls."""
    thinking: str = ""
    calls: Sequence[ToolCall] = ()
    broken: bool = False
    """It began a call that is none: no JSON, or JSON of another shape."""

    def message(self, first: int) -> Message:
        """In OpenAI's form, calls numbered from ``first``."""
        said: Message = {"role": "assistant", "content": self.words}
        if self.thinking:
            said["reasoning_content"] = self.thinking
        if self.calls:
            said["tool_calls"] = [_asked(call.name, call.arguments, first + n) for n, call in enumerate(self.calls)]
        return said


@dataclass(frozen=True)
class Reply:
    """What a tool said, or what was wrong with the call."""

    name: str
    text: str

    def message(self, number: int) -> Message:
        """In OpenAI's form, as the answer to the call of that number."""
        return {"role": "tool", "name": self.name, "content": self.text, "tool_call_id": _id(number)}


@dataclass
class Turns:
    """How conversations of a model with this template go on. ConfigError where it cannot be known.

    ``tools``: all that may be on offer, as OpenAI's API has them. ``chat_template``: as ``data.chat_template``.
    """

    tokenizer: Tokenizer
    tools: Sequence[dict[str, Any]]
    chat_template: str | None = None
    _role: str = field(init=False, default="tool")

    def __post_init__(self) -> None:
        self._told = not Renderer(self.tokenizer, chat_template=self.chat_template).tells_tools
        known = self.tokenizer.chat_templates
        named = known.get("tool_use", known.get("default", ""))
        source = named if self.chat_template is None else known.get(self.chat_template, self.chat_template)
        self._thinks = writes_thinking(source)
        formats: tuple[ToolFormat, ...] = ("hermes",) if self._told else tool_formats(source)
        if not formats:
            raise ConfigError(
                "the model's chat template tells of tools, but how it writes calls is not known here (known: "
                f"{', '.join(MARKS)}); data.chat_template=NAME or Jinja source gives another"
            )
        self._formats = formats
        self._marks = [MARKS[one] for one in formats]
        marks = map(self.tokenizer.token_to_id, self._marks)
        self._special = any(one in self.tokenizer.special_ids for one in marks)  # they must be there to be read
        self._probe()

    def _probe(self) -> None:
        """Whether the template has a place for results; not all know the role of a tool."""
        problem = "it leaves out what tools say"
        for role in ("tool", "user") if self._told else ("tool",):
            self._role = role
            try:
                text = self.tokenizer.decode(self.between([Reply("probe", _PROBE)]), skip_special_tokens=False)
            except TemplateError as error:
                problem = str(error)
                continue
            if _PROBE in text:
                return
        raise ConfigError(f"the model's chat template cannot go on behind a tool's result: {problem}")

    def read(self, ids: Sequence[int], before: Sequence[int], offered: Sequence[str] = ()) -> Said:
        """What a turn says. ``before``: the ids that stand before it; ``offered``: names of the tools on offer."""
        if ids and ids[-1] in self.tokenizer.eos_token_ids:
            ids = ids[:-1]
        text, thinking = self.tokenizer.decode(ids, skip_special_tokens=not self._special), ""
        if self._thinks:
            opened = self.tokenizer.decode(before[-16:], skip_special_tokens=False).rstrip().endswith(OPEN)
            splitter = ThinkingSplitter(inside=opened)
            thinking, text = (a + b for a, b in zip(splitter.push(text), splitter.flush(), strict=True))
        tools = [tool for tool in self.tools if not offered or tool["function"]["name"] in offered]
        parser = ToolCallParser(self._formats, tools)
        events = [*parser.push(text), *parser.flush()]
        words = "".join(event for event in events if isinstance(event, str)).strip()
        calls = [event for event in events if isinstance(event, ToolCall)]
        return Said(words, thinking, calls, broken=not calls and any(mark in words for mark in self._marks))

    def between(self, replies: Sequence[Reply]) -> list[int]:
        """The ids from behind the model's end token to where it speaks again. TemplateError where it cannot."""
        try:
            return self._between(replies)
        except TemplateError:
            if len(replies) == 1:
                raise
        # Llama 3's template takes one call a turn, which does not keep the model from writing several
        return self._between([Reply(replies[0].name, "\n".join(reply.text for reply in replies))])

    def _between(self, replies: Sequence[Reply]) -> list[int]:
        # the model's own words are of no account here, so that nothing it writes can upset the template
        asked = [_asked(reply.name, {}, number) for number, reply in enumerate(replies)]
        if self._told:
            results = [f"<tool_response>\n{reply.text}\n</tool_response>" for reply in replies]
            said: list[Message] = [{"role": "assistant", "content": "!"}]
            answers: list[Message] = [{"role": self._role, "content": "\n".join(results)}]
        else:
            said = [{"role": "assistant", "content": "", "tool_calls": asked}]
            answers = [reply.message(number) for number, reply in enumerate(replies)]
        begun = self._ids([_QUESTION, *said], begin_turn=False)
        whole = self._ids([_QUESTION, *said, *answers], begin_turn=True)
        return whole[self._end(begun, whole) :]

    def _end(self, begun: Sequence[int], whole: Sequence[int]) -> int:
        """Where the assistant's turn ends in `whole`: behind as many end tokens as in `begun`, which ends with it. A
        template may write a turn otherwise once the conversation goes on (Qwen 3 its thinking), but ends it alike."""
        end = behind_end_token(self.tokenizer, begun)
        count = sum(token in self.tokenizer.eos_token_ids for token in begun[:end])
        ends = [at + 1 for at, token in enumerate(whole) if token in self.tokenizer.eos_token_ids]
        if count and len(ends) >= count:
            return ends[count - 1]
        if not count and list(whole[: len(begun)]) == list(begun):
            return len(begun)
        raise TemplateError("it does not write a conversation's beginning the same way when it goes on")

    def _ids(self, messages: Sequence[Message], *, begin_turn: bool) -> list[int]:
        tools = None if self._told else self.tools
        how: dict[str, Any] = {"tools": tools, "chat_template": self.chat_template}
        return self.tokenizer.encode_chat(messages, add_generation_prompt=begin_turn, **how)


def _asked(name: str, arguments: dict[str, Any], number: int) -> dict[str, Any]:
    return {"id": _id(number), "type": "function", "function": {"name": name, "arguments": arguments}}


def _id(number: int) -> str:
    """Nine letters and digits, which is what Mistral's templates take."""
    return f"call{number:05d}"
