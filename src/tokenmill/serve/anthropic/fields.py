"""The requests of Anthropic's Messages API, field by field. An unknown field is refused with its name.

Accepted although it changes nothing here: ``cache_control`` (prefixes are cached by themselves), ``metadata``,
``service_tier``, signatures of thinking, ``redacted_thinking`` (only its maker can read it), citations of texts, and a
``context_management`` that keeps all. ``thinking.budget_tokens`` is a target and not a limit, in Anthropic's words too;
``max_tokens`` is the limit. Refused: images, documents, tools that Anthropic's servers run.
Source: https://docs.anthropic.com/en/api/messages.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_STOPS = 64


class Fields(BaseModel):
    """Part of a request."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Cached(Fields):
    cache_control: dict[str, Any] | None = None


class Text(Cached):
    type: Literal["text"]
    text: str
    citations: list[Any] | None = None


class ToolUse(Cached):
    type: Literal["tool_use"]
    id: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)]
    input: dict[str, Any] = {}
    caller: dict[str, Any] | None = None


class ToolResult(Cached):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[Text] = ""
    is_error: bool | None = None

    @property
    def text(self) -> str:
        """What a template is shown; templates have no other place for a failure than the text."""
        text = self.content if isinstance(self.content, str) else "\n".join(block.text for block in self.content)
        return f"Error: {text}" if self.is_error else text


class Thought(Cached):
    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThought(Cached):
    type: Literal["redacted_thinking"]
    data: str = ""


Block = Annotated[Text | ToolUse | ToolResult | Thought | RedactedThought, Field(discriminator="type")]
# Claude Code marks some of a user's turns with words of its own
_ROLES = {"ctx": "user", "msg": "user"}


class Message(Fields):
    role: Annotated[Literal["user", "assistant", "system"], BeforeValidator(lambda role: _ROLES.get(str(role), role))]
    content: str | list[Block]

    @property
    def blocks(self) -> list[Text | ToolUse | ToolResult | Thought | RedactedThought]:
        return [Text(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class Tool(Cached):
    type: Literal["custom"] | None = None
    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    eager_input_streaming: bool | None = None
    defer_loading: Literal[False] | None = None
    input_examples: list[dict[str, Any]] | None = None

    def for_template(self) -> dict[str, Any]:
        """As chat templates know tools."""
        function: dict[str, Any] = {"name": self.name, "description": self.description or ""}
        if self.input_examples:
            function["examples"] = self.input_examples
        strict = {"strict": True} if self.strict else {}
        return {"type": "function", "function": {**function, "parameters": self.input_schema, **strict}}


class ToolChoice(Fields):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Fields):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class JsonFormat(Fields):
    type: Literal["json_schema"]
    format_schema: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Fields):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class KeepThinking(Fields):
    type: Literal["clear_thinking_20251015"]
    keep: Literal["all"]


class ContextManagement(Fields):
    edits: list[KeepThinking] = []


class Count(Fields):
    """What a prompt is made of: all of ``count_tokens``."""

    model: Annotated[str, Field(min_length=1, max_length=2048)]
    messages: Annotated[list[Message], Field(min_length=1)]
    system: str | list[Text] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    context_management: ContextManagement | None = None
    cache_control: dict[str, Any] | None = None


class Create(Count):
    max_tokens: Annotated[int, Field(ge=1)]
    stream: bool = False
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    stop_sequences: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOPS)] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
