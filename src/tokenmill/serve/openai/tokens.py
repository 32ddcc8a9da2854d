"""``POST /tokenize`` and ``/detokenize``, as vLLM has them: what a text or a conversation costs before it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from tokenmill.llm import LLM
from tokenmill.serve.errors import FieldError
from tokenmill.serve.openai import shapes, wire
from tokenmill.serve.openai.chat import template_message
from tokenmill.serve.openai.schemas import Message, Strict, TokenId, Tool
from tokenmill.serve.prompting import chat_ids
from tokenmill.serve.replies import reply
from tokenmill.serve.tools import tool_use

router = APIRouter()


class TokenizeRequest(Strict):
    REFUSED: ClassVar[Mapping[str, str]] = {"content": "the text goes into prompt"}
    model: str = Field(min_length=1, max_length=512)
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=4096)
    tools: list[Tool] | None = Field(None, max_length=128)
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(Strict):
    model: str = Field(min_length=1, max_length=512)
    tokens: list[TokenId] = Field(max_length=4_000_000)


@router.post("/tokenize", responses={200: {"model": shapes.Tokenized}})
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """The token ids of a prompt, or of messages as the chat route would render them."""
    if (body.prompt is None) == (body.messages is None):
        raise FieldError("prompt", "give either prompt or messages")
    llm = (await wire.open_worker(request, body.model)).llm
    ids = await asyncio.to_thread(_ids, llm, body)
    strings = [wire.token_text(llm, token_id) for token_id in ids] if body.return_token_strs else None
    return reply({"count": len(ids), "max_model_len": llm.ctx_size, "tokens": ids, "token_strs": strings})


@router.post("/detokenize", responses={200: {"model": shapes.Detokenized}})
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """The text of token ids, control tokens spelled."""
    llm = (await wire.open_worker(request, body.model)).llm
    if bad := [token_id for token_id in body.tokens if token_id >= llm.tokenizer.vocab_size]:
        raise FieldError("tokens", f"{bad[:5]} are outside the vocabulary of {llm.tokenizer.vocab_size}")
    text = await asyncio.to_thread(llm.tokenizer.decode, body.tokens, skip_special_tokens=False)
    return reply({"prompt": text})


def _ids(llm: LLM, body: TokenizeRequest) -> list[int]:
    if body.prompt is not None:
        if body.tools:
            raise FieldError("tools", "go with messages")
        return llm.tokenizer.encode(body.prompt, add_special_tokens=body.add_special_tokens)
    if "add_special_tokens" in body.model_fields_set:
        raise FieldError("add_special_tokens", "messages are rendered by the template, which adds what it needs")
    use = tool_use(
        llm, [tool.model_dump(exclude_none=True) for tool in body.tools or []], None, parallel=None, format=None
    )
    messages = [template_message(message, number) for number, message in enumerate(body.messages or [])]
    return chat_ids(llm, messages, use.tools or None)
