"""Answers as Ollama writes them: JSON objects, one a line while they stream, the last with reason and measurements.

A whole answer is its streamed chunks put together, so the two cannot differ. What fails after the first line is a line
``{"error": …}``, for the status 200 has been sent by then.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tokenmill.core.errors import TokenmillError
from tokenmill.core.log import get_logger
from tokenmill.engine.request import Logprobs
from tokenmill.llm import LLM, Piece, Stats
from tokenmill.serve.errors import UnavailableError
from tokenmill.serve.ollama.fields import Chat, Generate
from tokenmill.serve.reading import Part, Reader
from tokenmill.serve.replies import json_text
from tokenmill.serve.worker import Ticket
from tokenmill.text.tokenizer import Tokenizer

Chunk = dict[str, Any]
_LEAST = -9999.0  # JSON has no minus infinity
_log = get_logger(__name__)


def now() -> str:
    """The time as Go prints it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@dataclass
class Answer:
    """One answer on its way: where its pieces come from and how they are to look."""

    body: Chat | Generate
    llm: LLM
    reader: Reader
    ticket: Ticket
    started: float
    """``time.perf_counter()`` when the request came."""
    load_s: float
    context: list[int] | None = None
    """The prompt's ids, if the answer is to come with the conversation's."""
    _said: list[int] = field(default_factory=list)
    _calls: int = 0

    async def chunks(self) -> AsyncGenerator[Chunk]:
        """The objects of a stream. Raises the error that ended the answer; stops the work when it is closed."""
        try:
            async for piece in self.ticket:
                if piece.finish_reason in ("abort", "error"):
                    raise piece.error or UnavailableError("the server ended this request")
                self._said += piece.token_ids
                parts = self.reader.push(piece.text, last=piece.finish_reason is not None)
                chunk = self._chunk(parts, piece.logprobs)
                if chunk is not None:
                    yield chunk
                if piece.finish_reason is not None:
                    yield self._last(piece, piece.stats or Stats())
        finally:
            self.ticket.cancel()

    async def whole(self) -> Chunk:
        """All chunks as one object."""
        whole: Chunk = {}
        async for chunk in self.chunks():
            _merge(whole, chunk)
        return whole

    def _chunk(self, parts: list[Part], logprobs: tuple[Logprobs, ...]) -> Chunk | None:
        told = [spell(self.llm.tokenizer, entry) for entry in logprobs] if self.body.logprobs else []
        if not parts and not told:
            return None
        text = "".join(part.text for part in parts if part.kind == "text")
        thinking = "".join(part.text for part in parts if part.kind == "thinking")
        calls = [self._call(part) for part in parts if part.kind == "tool_call"]
        more: Chunk = {"thinking": thinking} if thinking else {}
        more |= {"tool_calls": calls} if calls else {}
        return {
            "model": self.body.model,
            "created_at": now(),
            **self._said_as(more, text),
            "done": False,
            **({"logprobs": told} if told else {}),
        }

    def _said_as(self, more: Chunk, text: str) -> Chunk:
        """Chat's shape or generate's."""
        if isinstance(self.body, Chat):
            return {"message": {"role": "assistant", "content": text, **more}}
        return {"response": text, **more}

    def _call(self, part: Part) -> Chunk:
        assert part.call is not None, "a part of the kind tool_call has a call"
        self._calls += 1
        function = {"index": self._calls - 1, "name": part.call.name, "arguments": part.call.arguments}
        return {"id": f"call_{uuid.uuid4().hex[:8]}", "function": function}

    def _last(self, piece: Piece, stats: Stats) -> Chunk:
        context = {} if self.context is None else {"context": [*self.context, *self._said]}
        return {
            "model": self.body.model,
            "created_at": now(),
            **self._said_as({}, ""),
            "done": True,
            "done_reason": piece.finish_reason,
            **context,
            "total_duration": nanoseconds(time.perf_counter() - self.started),
            "load_duration": nanoseconds(self.load_s),
            "prompt_eval_count": stats.prompt_tokens,
            "prompt_eval_duration": nanoseconds(stats.prompt_s),
            "eval_count": stats.completion_tokens,
            "eval_duration": nanoseconds(stats.decode_s),
        }


def _merge(whole: Chunk, chunk: Chunk) -> None:
    for key, value in chunk.items():
        if isinstance(value, dict) and isinstance(whole.get(key), dict):
            _merge(whole[key], value)
        elif key in ("content", "response", "thinking", "tool_calls", "logprobs"):
            whole[key] = whole[key] + value if key in whole else value
        else:
            whole[key] = value


def nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def spell(tokenizer: Tokenizer, entry: Logprobs) -> Chunk:
    """One position's log-probabilities in Ollama's words."""
    told = _token(tokenizer, entry.token_id, entry.logprob)
    if entry.top:
        told["top_logprobs"] = [_token(tokenizer, token_id, logprob) for token_id, logprob in entry.top]
    return told


def _token(tokenizer: Tokenizer, token_id: int, logprob: float) -> Chunk:
    data = tokenizer.token_bytes(token_id)
    return {"token": data.decode("utf-8", "replace"), "logprob": max(logprob, _LEAST), "bytes": list(data)}


async def lines(chunks: AsyncGenerator[Chunk]) -> AsyncIterator[str]:
    """Lines of JSON; an error becomes the last line. A client that goes ends what makes the chunks."""
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                yield json_text(chunk) + "\n"
    except TokenmillError as error:
        yield json_text({"error": str(error)}) + "\n"
    except Exception:  # the status is sent: without a line the client would take the answer for complete
        _log.exception("a stream broke off")
        yield json_text({"error": "an error was encountered while running the model"}) + "\n"
