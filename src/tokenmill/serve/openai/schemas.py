"""Requests of the chat and completions routes, checked field by field.

A field that is not listed is refused; so are, each with its reason, those of OpenAI's that this server cannot honour.
`HABITS` are accepted because clients send them by habit and they promise nothing that could be kept or broken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from tokenmill.core.errors import did_you_mean
from tokenmill.engine.repetition import MAX_PATTERN, RepetitionDetection
from tokenmill.serve.description import NEVER

MAX_N = 128
MAX_LOGPROBS = 20
MAX_PROMPTS = 2048
HABITS = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)

Real = Annotated[float, Field(allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    """A part of a request. ``REFUSED`` says why a field is refused where it asks for something; ``NEUTRAL`` ones are
    passed over."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    REFUSED: ClassVar[Mapping[str, str]] = {}
    NEUTRAL: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        kept, fields = {}, {field.alias or name for name, field in cls.model_fields.items()}
        for name, value in given.items():
            if name in cls.REFUSED:
                if value is not False and value not in (None, "", [], {}):
                    raise _refusal(name, cls.REFUSED[name])
            elif name in fields:
                kept[name] = value
            elif name not in cls.NEUTRAL:
                raise _refusal(name, f"this field is not supported{did_you_mean(name[:60], [*fields, *cls.REFUSED])}")
        return kept

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The fields that are passed over or refused belong to the description too."""
        made = handler(schema)
        properties = handler.resolve_ref_schema(made).setdefault("properties", {})
        for name in sorted(cls.NEUTRAL):
            properties[name] = {"description": "Accepted; it changes nothing here."}
        for name, why in cls.REFUSED.items():
            properties[name] = {"enum": NEVER, "description": f"Refused: {why}."}
        return made


def _refusal(name: str, why: str) -> PydanticCustomError:
    plain = name[:60].encode("utf-8", "replace").decode()  # pydantic cannot carry half a surrogate pair
    return PydanticCustomError("refused", "{param}: {why}", {"param": plain, "why": why})


class Repetition(Strict):
    """vLLM's: an answer ends (``finish_reason`` is ``repetition``) when it has a pattern so often one after another."""

    max_pattern_size: int = Field(0, ge=0, le=MAX_PATTERN)
    """In tokens; 0 is off."""
    min_pattern_size: int = Field(0, ge=0, le=MAX_PATTERN)
    """In tokens; 0 is 1."""
    min_count: int = Field(0, ge=0, lt=2**31)

    @property
    def rule(self) -> RepetitionDetection | None:
        """As `SamplingParams` takes it. Raises UsageError for numbers that do not go together."""
        if not self.max_pattern_size:
            return None
        return RepetitionDetection(
            max_pattern_size=self.max_pattern_size,
            min_pattern_size=self.min_pattern_size or 1,
            min_count=self.min_count,
        )


class Sampling(Strict):
    """What chat and completions have in common; the second half are vLLM's extras."""

    NEUTRAL = HABITS
    model: str = Field(min_length=1, max_length=512)
    temperature: Real | None = Field(None, ge=0, le=2)
    top_p: Real | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_N)
    stop: str | list[str] | None = None
    max_tokens: int | None = Field(None, ge=0)
    presence_penalty: Real | None = Field(None, ge=-2, le=2)
    frequency_penalty: Real | None = Field(None, ge=-2, le=2)
    logit_bias: dict[TokenId, Annotated[Real, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    top_k: int | None = Field(None, ge=-1)
    min_p: Real | None = Field(None, ge=0, le=1)
    repetition_penalty: Real | None = Field(None, gt=0, le=100)
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0)
    stop_token_ids: list[TokenId] | None = Field(None, max_length=64)
    repetition_detection: Repetition | None = None
    priority: int = Field(0, ge=0, lt=2**31)
    """Who sends a larger number lets the others go first. Nobody can send one that puts them ahead."""
    cache_salt: str = Field("", max_length=256)


class StreamOptions(Strict):
    REFUSED: ClassVar[Mapping[str, str]] = {
        "include_obfuscation": "padding against traffic analysis is not made; the connection can be encrypted"
    }
    include_usage: bool = False


class JsonSchema(Strict):
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    """Output is held to the schema in any case."""
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError('a json_schema goes with {"type": "json_schema"}, and is needed there')
        return self

    @property
    def format(self) -> str | dict[str, Any] | None:
        """As `LLM` takes it."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return "json" if self.type == "json_object" else None


class Function(Strict):
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: FunctionName


class CalledFunction(Strict):
    name: str
    arguments: str


class ToolCallIn(Strict):
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class TextPart(Strict):
    REFUSED: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("image_url", "input_audio", "file", "refusal"), "only text parts can be read by this model"
    )
    type: Literal["text"]
    text: str


def parts_of(kind: str) -> Any:
    """Content may be a text; then it is one part. (A union would report every mistake twice.)"""
    return lambda given: [{"type": kind, "text": given}] if isinstance(given, str) else given


Content = Annotated[
    list[TextPart] | None, BeforeValidator(parts_of("text"), json_schema_input_type=str | list[TextPart] | None)
]


class Message(Strict):
    REFUSED: ClassVar[Mapping[str, str]] = {
        "audio": "this server speaks no audio",
        "function_call": "use tool_calls",
        "refusal": "a refusal is not part of a conversation here; send it as content",
        "annotations": "annotations are not made here",
    }
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    name: str | None = None
    tool_calls: list[ToolCallIn] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ChatRequest(Sampling):
    REFUSED: ClassVar[Mapping[str, str]] = {
        "audio": "this server speaks no audio",
        "modalities": "answers are text; leave modalities out",
        "prediction": "predicted outputs are not used here",
        "functions": "use tools",
        "function_call": "use tool_choice",
        "web_search_options": "this server does not search the web",
        "verbosity": "no model here has a verbosity setting; say it in the system message",
        "moderation": "nothing is moderated here",
    }
    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=0)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class CompletionRequest(Sampling):
    REFUSED: ClassVar[Mapping[str, str]] = {"suffix": "text cannot be inserted here; put everything into the prompt"}
    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    best_of: int | None = Field(None, ge=1, le=MAX_N)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    return_tokens_as_token_ids: bool | None = None
    """vLLM's: logprobs name tokens ``token_id:17``, which says which one it is where several look alike as text."""
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
