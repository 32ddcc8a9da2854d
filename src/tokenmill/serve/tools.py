"""Tools of a request: what the template is shown, what the answer is held to, and reading calls out of it.

``auto`` leaves the model free; calls are found in its text. ``required`` and a named function hold the whole answer to
one call by a grammar. ``strict`` arguments can only be promised that way, so they are refused with ``auto``.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokenmill.core.errors import did_you_mean
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.llm import LLM, Format
from tokenmill.serve.errors import FieldError
from tokenmill.serve.prompting import template_of
from tokenmill.serve.reading import AnswerReader, Part
from tokenmill.text.tool_calls import MARKS, ToolCall, ToolCallParser, tool_formats


@dataclass(frozen=True)
class ToolUse:
    """``tools``: what the template is shown. ``format``: what the answer is held to, by the request or by a choice."""

    tools: list[dict[str, Any]] = field(default_factory=list)
    format: Format = None
    forced: bool = False
    single: bool = False

    def params(self, llm: LLM, params: SamplingParams) -> SamplingParams:
        """Control tokens that mark a call must reach the parser."""
        marks = [MARKS[name] for name in tool_formats(template_of(llm))] if self.tools and not self.forced else []
        special = any(llm.tokenizer.token_to_id(mark) in llm.tokenizer.special_ids for mark in marks)
        return replace(params, skip_special_tokens=False) if special else params


def tool_use(
    llm: LLM, tools: Sequence[dict[str, Any]], choice: str | None, *, parallel: bool | None, format: Format
) -> ToolUse:
    """``choice``: none, auto, required, or a function's name. Raises FieldError for what cannot be kept."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise FieldError("tool_choice", "there are no tools to choose from")
        return ToolUse(format=format)
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise FieldError("tools", "two tools have the same name")
    if choice == "none":
        return ToolUse(format=format)
    if not tool_formats(template_of(llm)):
        raise FieldError("tools", f"the chat template of {llm.name} has no place for tools that is known here")
    if format is not None:
        raise FieldError("response_format", "text held to a format cannot hold tool calls; leave out one of them")
    shown = list(tools)
    if choice in (None, "auto"):
        if any(tool["function"].get("strict") for tool in tools):
            raise FieldError(
                "tools", 'strict needs tool_choice "required" or a named function; with "auto" leave it out'
            )
        return ToolUse(shown, single=parallel is False)
    chosen = [tool for tool in tools if choice in ("required", tool["function"]["name"])]
    if not chosen:
        raise FieldError("tool_choice", f"there is no tool {choice!r}{did_you_mean(str(choice), names)}")
    calls = [_call_schema(tool["function"]) for tool in chosen]
    return ToolUse(shown, calls[0] if len(calls) == 1 else {"anyOf": calls}, forced=True)


def _call_schema(function: dict[str, Any]) -> dict[str, Any]:
    arguments = function.get("parameters") or {"type": "object"}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


class ChoiceReader:
    """Reads one answer into parts. After the first of calls that were asked not to be parallel, nothing follows."""

    def __init__(self, llm: LLM, ids: Sequence[int], params: SamplingParams, use: ToolUse) -> None:
        # an answer held to a format is that format from its first character on: no thinking comes before it
        template = template_of(llm) if use.format is None else None
        self._reader = AnswerReader(llm, ids, params, template=template, tools=[] if use.forced else use.tools)
        self._forced = ToolCallParser(("llama3",), use.tools) if use.forced else None
        self._single = use.single
        self.params = self._reader.params
        self.num_calls = 0

    @property
    def stop_text(self) -> str | None:
        """Which stop text ended the answer."""
        return self._reader.stop_text

    def push(self, text: str, *, last: bool) -> list[Part]:
        parts = self._reader.push(text) + (self._reader.flush() if last else [])
        if self._forced is not None:
            events = [event for part in parts for event in self._forced.push(part.text)]
            events += self._forced.flush() if last else []
            parts = [
                Part("tool_call", call=event) if isinstance(event, ToolCall) else Part("text", event)
                for event in events
            ]
        shown = []
        for part in parts:
            if not (self._single and self.num_calls):
                shown.append(part)
                self.num_calls += part.kind == "tool_call"
        return shown

    def reason(self, reason: str) -> str:
        return "tool_calls" if self.num_calls and reason == "stop" else reason


def call_body(call: ToolCall) -> dict[str, Any]:
    """A call as OpenAI's answers have it: arguments are JSON text."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }
