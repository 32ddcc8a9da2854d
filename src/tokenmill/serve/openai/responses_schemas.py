"""Requests of ``/v1/responses``, as far as a server that keeps nothing can honour them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, Tag, model_validator
from pydantic.types import Discriminator

from tokenmill.serve.openai.schemas import HABITS, Real, Strict, parts_of

_STATELESS = "this server keeps no conversations; send all items in input"


class InputText(Strict):
    REFUSED: ClassVar[Mapping[str, str]] = {"image_url": "only text can be read", "file_id": "only text can be read"}
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = Field(None, max_length=0)
    logprobs: list[Any] | None = None
    """Of an earlier answer that is sent back; they say nothing about the text."""


Content = Annotated[
    list[InputText], BeforeValidator(parts_of("input_text"), json_schema_input_type=str | list[InputText])
]


class MessageItem(Strict):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class FunctionCall(Strict):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None


class FunctionCallOutput(Strict):
    type: Literal["function_call_output"]
    call_id: str
    output: Content
    id: str | None = None
    status: str | None = None


def _kind(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "message")
    return str(kind)


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")],
    Discriminator(_kind),
]


def _items_of(given: Any) -> Any:
    """A text is one message of the user."""
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


InputItems = Annotated[
    list[Item], Field(min_length=1), BeforeValidator(_items_of, json_schema_input_type=str | list[Item])
]


class FunctionTool(Strict):
    type: Literal["function"]
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def nested(self) -> dict[str, Any]:
        """As the chat route has it."""
        return {"type": "function", "function": self.model_dump(exclude_none=True, exclude={"type"})}


class NamedFunction(Strict):
    type: Literal["function"]
    name: str


class TextFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _complete(self) -> TextFormat:
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise ValueError('a schema goes with {"type": "json_schema"}, and is needed there')
        return self

    @property
    def format(self) -> str | dict[str, Any] | None:
        return self.schema_ if self.schema_ is not None else "json" if self.type == "json_object" else None


class TextOptions(Strict):
    REFUSED: ClassVar[Mapping[str, str]] = {
        "verbosity": "no model here has a verbosity setting; say it in the instructions"
    }
    format: TextFormat | None = None


class ResponsesRequest(Strict):
    NEUTRAL = HABITS
    REFUSED: ClassVar[Mapping[str, str]] = {
        "previous_response_id": _STATELESS,
        "conversation": _STATELESS,
        "background": "answers are made while the client waits",
        "include": "nothing more than the answer is kept, so nothing more can be included",
        "prompt": "prompt templates are kept by no one here; send the text",
        "reasoning": "use /v1/chat/completions, whose reasoning_effort is honoured",
        "max_tool_calls": "tools are called by the client",
        "top_logprobs": "use /v1/chat/completions for log-probabilities",
        "stream_options": "usage comes with the last event; nothing else can be chosen",
        "context_management": _STATELESS,
        "moderation": "nothing is moderated here",
    }
    model: str = Field(min_length=1, max_length=512)
    input: InputItems
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: Real | None = Field(None, ge=0, le=2)
    top_p: Real | None = Field(None, gt=0, le=1)
    text: TextOptions | None = None
    tools: list[FunctionTool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled"] | None = None
    """A conversation is never cut in silence, so ``auto`` is refused."""
    metadata: dict[str, str] | None = Field(None, max_length=16)
    stream: bool | None = None
