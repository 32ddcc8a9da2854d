"""The replies of Anthropic's protocol, field by field, for the description of the server."""

from __future__ import annotations

from typing import Any, Literal

from tokenmill.serve.description import Shape


class ErrorDetail(Shape):
    type: str
    message: str


class Error(Shape):
    type: Literal["error"]
    error: ErrorDetail


class TextBlock(Shape):
    type: Literal["text"]
    text: str


class ThinkingBlock(Shape):
    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseBlock(Shape):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class Usage(Shape):
    input_tokens: int
    """Those that were computed; what the prefix cache had is cache_read_input_tokens."""
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class Message(Shape):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: Usage


class TokenCount(Shape):
    input_tokens: int
