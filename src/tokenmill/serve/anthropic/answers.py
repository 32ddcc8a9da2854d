"""Answers in Anthropic's shape: a message of typed blocks, whole or as server-sent events.

The whole message is built from the same events that a stream sends, so the two cannot differ. What fails on the way is
an ``error`` event. ``input_tokens`` are those that had to be computed; those found in the prefix cache are
``cache_read_input_tokens``, which is known at the end.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from tokenmill.core.errors import TokenmillError
from tokenmill.core.log import get_logger
from tokenmill.llm import Piece, Stats
from tokenmill.serve.anthropic.errors import error_body
from tokenmill.serve.errors import UnavailableError
from tokenmill.serve.reading import Part
from tokenmill.serve.replies import json_text
from tokenmill.serve.tools import ChoiceReader
from tokenmill.serve.worker import Ticket

Event = dict[str, Any]
_DELTAS = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}
_log = get_logger(__name__)


@dataclass
class Answer:
    """One answer on its way."""

    model: str
    reader: ChoiceReader
    ticket: Ticket
    num_prompt: int
    stop_sequences: list[str]
    """The request's own; a stop text of the model's author is a plain end."""
    _open: str = ""
    """The kind of the block that is being written."""
    _index: int = -1
    _calls: list[Event] = field(default_factory=list)

    async def events(self) -> AsyncGenerator[Event]:
        """The events of a stream. Raises the error that ended the answer; stops the work when it is closed."""
        try:
            yield {"type": "message_start", "message": self._empty()}
            yield {"type": "ping"}
            async for piece in self.ticket:
                if piece.finish_reason in ("abort", "error"):
                    raise piece.error or UnavailableError("the server ended this request")
                for part in self.reader.push(piece.text, last=piece.finish_reason is not None):
                    for event in self._told(part):
                        yield event
                if piece.finish_reason is not None:
                    for event in self._end(piece):
                        yield event
        finally:
            self.ticket.cancel()

    async def whole(self) -> Event:
        """The message that the events amount to."""
        message: Event = {}
        written: list[str] = []
        async for event in self.events():
            match event["type"]:
                case "message_start":
                    message = event["message"]
                case "content_block_start":
                    message["content"].append(dict(event["content_block"]))
                    written = []
                case "content_block_delta":
                    written.append(next(value for key, value in event["delta"].items() if key != "type"))
                case "content_block_stop":
                    _fill(message["content"][-1], "".join(written))
                case "message_delta":
                    message |= event["delta"] | {"usage": {**message["usage"], **event["usage"]}}
        return message

    def _empty(self) -> Event:
        return {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(Stats(prompt_tokens=self.num_prompt)),
        }

    def _told(self, part: Part) -> Iterator[Event]:
        if part.call is not None:
            yield from self._close()
            block = {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": part.call.name, "input": {}}
            yield from self._start("tool_use", block)
            arguments = json.dumps(part.call.arguments, ensure_ascii=False)
            yield self._delta({"type": "input_json_delta", "partial_json": arguments})
            yield from self._close()
            return
        if self._open != part.kind:
            if part.kind == "text" and not part.text.strip() and self._index >= 0:
                return  # white space between blocks is none of its own
            yield from self._close()
            more = {"signature": ""} if part.kind == "thinking" else {}
            yield from self._start(part.kind, {"type": part.kind, part.kind: "", **more})
        delta, name = _DELTAS[part.kind]
        yield self._delta({"type": delta, name: part.text})

    def _start(self, kind: str, block: Event) -> Iterator[Event]:
        self._open, self._index = kind, self._index + 1
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, delta: Event) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self) -> Iterator[Event]:
        if self._open:
            yield {"type": "content_block_stop", "index": self._index}
        self._open = ""

    def _end(self, piece: Piece) -> Iterator[Event]:
        yield from self._close()
        stop = self.reader.stop_text if self.reader.stop_text in self.stop_sequences else None
        reason = "max_tokens" if piece.finish_reason == "length" else "stop_sequence" if stop else "end_turn"
        reason = "tool_use" if self.reader.num_calls and reason == "end_turn" else reason
        usage = _usage(piece.stats or Stats())
        yield {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": stop}, "usage": usage}
        yield {"type": "message_stop"}


def _usage(stats: Stats) -> Event:
    return {
        "input_tokens": stats.prompt_tokens - stats.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": stats.cached_tokens,
        "output_tokens": stats.completion_tokens,
    }


def _fill(block: Event, written: str) -> None:
    if block["type"] == "tool_use":
        block["input"] = json.loads(written)
    else:
        block[block["type"]] = written


async def server_sent(events: AsyncGenerator[Event]) -> AsyncGenerator[str]:
    """Events as they go over the line; an error becomes the last one. A client that goes ends what makes them."""
    try:
        async with aclosing(events):
            async for event in events:
                yield _line(event)
    except TokenmillError as error:
        yield _line(error_body(error))
    except Exception:  # the status is sent: without an event the client would wait for the end in vain
        _log.exception("a stream broke off")
        yield _line(error_body(TokenmillError("an internal error ended the answer")))


def _line(event: Event) -> str:
    return f"event: {event['type']}\ndata: {json_text(event)}\n\n"


PING = _line({"type": "ping"})
