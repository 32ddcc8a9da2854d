"""The output items of a response as they grow, each step told by the event that OpenAI's clients expect.

Text and calls become items in the order they come; thinking becomes a ``reasoning`` item. One item is open at a time.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from tokenmill.serve.reading import Part
from tokenmill.serve.tools import call_body
from tokenmill.text.tool_calls import ToolCall

Event = dict[str, Any]


class Items:
    """Push parts, get events; ``done`` has the finished items."""

    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []
        self._open: str | None = None  # "text" or "thinking"
        self._id = ""
        self._text = ""

    def push(self, parts: Sequence[Part], *, last: bool) -> Iterator[Event]:
        for part in parts:
            if part.call is not None:
                yield from self._close()
                yield from self._call(part.call)
                continue
            if part.kind != self._open:
                yield from self._close()
                yield from self._begin(part.kind)
            self._text += part.text
            kind = "response.output_text.delta" if part.kind == "text" else "response.reasoning_text.delta"
            yield self._at(kind, content_index=0, delta=part.text, **self._logprobs())
        if last:
            yield from self._close()
            if not self.done:  # an answer without a word is still a message
                yield from self._begin("text")
                yield from self._close()

    def _begin(self, kind: str) -> Iterator[Event]:
        self._open, self._text = kind, ""
        self._id = f"{'msg' if kind == 'text' else 'rs'}_{secrets.token_hex(12)}"
        begun = self._item("in_progress")
        begun["content"] = []
        yield self._at("response.output_item.added", item=begun, item_id=None)
        if kind == "text":
            yield self._at("response.content_part.added", content_index=0, part=self._part(""))

    def _close(self) -> Iterator[Event]:
        if self._open is None:
            return
        if self._open == "text":
            yield self._at("response.output_text.done", content_index=0, text=self._text, **self._logprobs())
            yield self._at("response.content_part.done", content_index=0, part=self._part(self._text))
        else:
            yield self._at("response.reasoning_text.done", content_index=0, text=self._text)
        item = self._item("completed")
        yield self._at("response.output_item.done", item=item, item_id=None)
        self.done.append(item)
        self._open = None

    def _call(self, call: ToolCall) -> Iterator[Event]:
        body = call_body(call)
        self._id = f"fc_{secrets.token_hex(12)}"
        text = body["function"]["arguments"]
        item = {"id": self._id, "type": "function_call", "call_id": body["id"], "name": call.name}
        begun = {**item, "arguments": "", "status": "in_progress"}
        ended = {**item, "arguments": text, "status": "completed"}
        yield self._at("response.output_item.added", item=begun, item_id=None)
        yield self._at("response.function_call_arguments.delta", delta=text)
        yield self._at("response.function_call_arguments.done", name=call.name, arguments=text)
        yield self._at("response.output_item.done", item=ended, item_id=None)
        self.done.append(ended)

    def _item(self, status: str) -> dict[str, Any]:
        if self._open == "text":
            content = [self._part(self._text)]
            return {"id": self._id, "type": "message", "role": "assistant", "status": status, "content": content}
        thought = [{"type": "reasoning_text", "text": self._text}]
        return {"id": self._id, "type": "reasoning", "summary": [], "content": thought, "status": status}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _logprobs(self) -> dict[str, Any]:
        return {"logprobs": []} if self._open == "text" else {}

    def _at(self, kind: str, **fields: Any) -> Event:
        """An event of the item that is being made; events about whole items carry it instead of its id."""
        named = {"type": kind, "item_id": self._id, "output_index": len(self.done), **fields}
        return {name: value for name, value in named.items() if value is not None}
