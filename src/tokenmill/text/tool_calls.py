"""Finds tool calls in what a model writes, while it is being written.

Three ways to write them, each known by what the chat template teaches the model:

- ``hermes`` (Hermes 2, Qwen 2.5 and 3, SmolLM2): ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``, or a list;
- ``mistral``: ``[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]``;
- ``llama3`` (Llama 3.1 to 3.3): the answer itself is ``{"name": …, "parameters": {…}}``; several are parted by ``;``.

A call is given out as soon as its JSON is complete, as a whole. What looks like one and is none (broken JSON, another
shape, bare JSON that names no known tool) stays text: nothing that the model wrote is lost, except white space beside
calls. The result does not depend on where the text was cut, and the work grows linearly with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

ToolFormat = Literal["hermes", "mistral", "llama3"]

MARKS = {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS]", "llama3": "<|python_tag|>"}
_CLOSE = "</tool_call>"


@dataclass(frozen=True)
class ToolCall:
    """A function that the model wants called."""

    name: str
    arguments: dict[str, Any]


def tool_formats(template: str | None) -> tuple[ToolFormat, ...]:
    """How a model with this chat template (Jinja or Go) writes tool calls; empty if the template knows no tools."""
    if template is None or "tools" not in template.lower():
        return ()
    found: list[ToolFormat] = []
    if "<tool_call>" in template:
        found.append("hermes")
    if "[TOOL_CALLS]" in template:
        found.append("mistral")
    if "<|python_tag|>" in template or '"parameters": dictionary' in template:
        found.append("llama3")
    return tuple(found)


class _Brackets:
    """Finds the end of a JSON object or list that arrives in pieces, reading each character once."""

    def __init__(self) -> None:
        self._depth, self._at = 0, 0
        self._in_string = self._escaped = False

    def end(self, text: str, start: int) -> int | None:
        """Where the value that begins at `start` ends; `text` may only have grown since the last call."""
        for place in range(start + self._at, len(text)):
            char = text[place]
            self._at += 1
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return place + 1
        return None


class ToolCallParser:
    """Push the model's text, get texts and calls in their order; `flush` when it is over.

    Args:
        formats: from `tool_formats`.
        tools: the tools on offer, ``{"type": "function", "function": {"name": …}}``; bare JSON counts as a call only if
            it names one of them. Marked calls count with any name, so that the client sees what the model tried.
    """

    def __init__(self, formats: Sequence[ToolFormat], tools: Iterable[Mapping[str, Any]]) -> None:
        self._marks = [MARKS[name] for name in formats]
        self._bare = "llama3" in formats
        self._names = {tool["function"]["name"] for tool in tools}
        self._text = ""
        self._state: Literal["start", "text", "body", "after"] = "start" if self._bare else "text"
        self._body = 0  # where, in `_text`, what follows the mark begins
        self._mark = ""
        self._brackets = _Brackets()
        self.num_calls = 0

    def push(self, text: str) -> list[str | ToolCall]:
        """What is certain by now and was not given out yet."""
        self._text += text
        events: list[str | ToolCall] = []
        steps = {"start": self._start, "text": self._plain, "body": self._value, "after": self._after}
        while steps[self._state](events):
            pass
        return events

    def flush(self) -> list[str | ToolCall]:
        """What waited: an unfinished call is text after all; white space after a call is dropped."""
        rest, self._text = self._text, ""
        dropped = self.num_calls and not rest.strip()
        return [] if dropped or not rest else [rest]

    def _start(self, events: list[str | ToolCall]) -> bool:
        """Before anything was said, or after a semicolon: is the answer itself JSON?"""
        stripped = self._text.lstrip()
        if not stripped:
            return False
        if stripped[0] == "{":
            self._enter_body(len(self._text) - len(stripped), "")
        else:
            self._state = "text"
        return True

    def _plain(self, events: list[str | ToolCall]) -> bool:
        found = [(at, mark) for mark in self._marks if (at := self._text.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            self._give(events, len(self._text[:at].rstrip()))
            self._enter_body(self._text.index(mark) + len(mark), mark)
            return True
        self._give(events, len(self._text[: len(self._text) - self._partial_mark()].rstrip()))
        return False

    def _value(self, events: list[str | ToolCall]) -> bool:
        body = self._text[self._body : self._body + 64].lstrip()
        if not body:
            if len(self._text) - self._body < 64:
                return False
            return self._not_a_call(events, self._body)
        if body[0] not in ("{" if self._mark == "<|python_tag|>" else "{["):
            return self._not_a_call(events, self._body)
        start = self._text.index(body[0], self._body)
        end = self._brackets.end(self._text, start)
        if end is None:
            return False
        calls = _calls(self._text[start:end])
        if not calls or (not self._mark and any(call.name not in self._names for call in calls)):
            return self._not_a_call(events, end)
        events += calls
        self.num_calls += len(calls)
        self._text, self._state = self._text[end:], "after"
        return True

    def _after(self, events: list[str | ToolCall]) -> bool:
        """Behind a call: its closing tag, or the semicolon before another bare one."""
        rest = self._text.lstrip()
        if not rest:
            return False
        closing = _CLOSE if self._mark == "<tool_call>" else ";" if self._bare else ""
        if closing and rest.startswith(closing):
            self._text = rest[len(closing) :]
            self._state = "text" if closing == _CLOSE else "start"
            return True
        if closing and closing.startswith(rest):
            return False
        self._state = "text"
        return True

    def _enter_body(self, at: int, mark: str) -> None:
        self._body, self._mark, self._state, self._brackets = at, mark, "body", _Brackets()

    def _not_a_call(self, events: list[str | ToolCall], end: int) -> bool:
        self._give(events, end)
        self._state = "text"
        return True

    def _give(self, events: list[str | ToolCall], length: int) -> None:
        if length:
            events.append(self._text[:length])
            self._text = self._text[length:]

    def _partial_mark(self) -> int:
        """Length of the longest end of the text that may become a mark."""
        longest = min(max(map(len, self._marks), default=1) - 1, len(self._text))
        for length in range(longest, 0, -1):
            if any(mark.startswith(self._text[-length:]) for mark in self._marks):
                return length
        return 0


def _calls(text: str) -> list[ToolCall]:
    """The calls that a JSON value stands for; none if it is broken or has another shape."""
    try:
        value = json.loads(text)
        items = value if isinstance(value, list) else [value]
        return [_call(item) for item in items]
    except (ValueError, RecursionError):
        return []


def _call(item: Any) -> ToolCall:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str) or not item["name"]:
        raise ValueError("no name")
    known = [key for key in ("arguments", "parameters") if key in item]
    if not known:
        raise ValueError("no arguments")
    arguments = item[known[0]]
    if isinstance(arguments, str):  # some models write the object as a text, as OpenAI's API has it
        arguments = json.loads(arguments)
    if not isinstance(arguments, dict):
        raise ValueError("arguments are no object")
    return ToolCall(item["name"], arguments)
