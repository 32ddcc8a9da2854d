"""Reads an answer's pieces: stop texts off, thinking apart, tool calls out. For protocols that stream typed parts.

Stop texts are matched here a second time because a :class:`Piece` does not say which of them ended the answer, and
Anthropic's protocol does: the engine is asked to leave the stop text in, and this takes it off again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.llm import LLM
from tokenmill.serve.prompting import ends_in_thinking
from tokenmill.text.stop import StopMatcher
from tokenmill.text.thinking import ThinkingSplitter, writes_thinking
from tokenmill.text.tool_calls import ToolCall, ToolCallParser, tool_formats


@dataclass(frozen=True)
class Part:
    """A bit of text or thinking, or a whole tool call."""

    kind: Literal["text", "thinking", "tool_call"]
    text: str = ""
    call: ToolCall | None = None


class Reader(Protocol):
    """What answers are read with."""

    def push(self, text: str, *, last: bool) -> list[Part]: ...


class AnswerReader:
    """Push the text of one answer's pieces, get its parts; `flush` when it is over, or say so with the last piece.

    ``template``: source of the chat template that made the prompt; None for a raw prompt, whose answer is all text.
    """

    def __init__(
        self,
        llm: LLM,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        template: str | None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.params = replace(params, include_stop_str_in_output=True) if params.stop else params
        self._stops = StopMatcher(params.stop)
        self._thinking = None
        if writes_thinking(template):
            self._thinking = ThinkingSplitter(inside=ends_in_thinking(llm, prompt_ids))
        self._tools = ToolCallParser(tool_formats(template), tools) if tools else None
        self.num_calls = 0

    @property
    def stop_text(self) -> str | None:
        """Which stop text ended the answer."""
        return self._stops.matched

    def push(self, text: str, *, last: bool = False) -> list[Part]:
        return list(self._parts(self._stops.push(text))) + (self.flush() if last else [])

    def flush(self) -> list[Part]:
        parts = list(self._parts(self._stops.flush() if self._stops.matched is None else ""))
        if self._thinking is not None:
            parts += self._split(*self._thinking.flush())
        if self._tools is not None:
            parts += self._told(self._tools.flush())
        return parts

    def _parts(self, text: str) -> Iterator[Part]:
        if self._thinking is None:
            yield from self._split("", text)
        else:
            yield from self._split(*self._thinking.push(text))

    def _split(self, thinking: str, text: str) -> Iterator[Part]:
        if thinking:
            yield Part("thinking", thinking)
        if text and self._tools is None:
            yield Part("text", text)
        elif text and self._tools is not None:
            yield from self._told(self._tools.push(text))

    def _told(self, events: list[str | ToolCall]) -> Iterator[Part]:
        for event in events:
            if isinstance(event, ToolCall):
                self.num_calls += 1
                yield Part("tool_call", call=event)
            else:
                yield Part("text", event)
