"""The requests of Ollama's API, field by field. An unknown field is refused; a known one is honoured or says why not.

Accepted although it changes nothing: ``num_thread`` and the other options that choose placement (see
``store/parameters.py``), ``verbose`` of show where there is no more to tell, ``options`` of the embedding routes.
Source: Ollama's api/types.go and docs/api.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from tokenmill.serve.description import NEVER
from tokenmill.store import parameters

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")
MAX_KEEP_ALIVE = 10 * 365 * 86400.0


def keep_alive_seconds(value: Any) -> float | None:
    """Go's duration text (``"1h30m"``, ``"-1m"``) or a number of seconds -> seconds; negative is for ever."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("must be a number of seconds or a duration such as '5m'")
    if isinstance(value, str):
        text = value.strip()
        sign, text = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
        parts = _DURATION.findall(text)
        if text == "0":
            parts = [("0", "s")]
        elif not parts or "".join(number + unit for number, unit in parts) != text or len(text) > 64:
            raise ValueError(f"{value[:40]!r} is not a duration; write a number of seconds, or '5m', '1h30m', '-1m'")
        value = sign * sum(float(number) * _UNITS[unit] for number, unit in parts)
    if value != value:
        raise ValueError("must be a number")
    return -1.0 if value < 0 else min(float(value), MAX_KEEP_ALIVE)


@dataclass(frozen=True)
class Refuse:
    """A field that may ask for nothing, with the reason."""

    reason: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"enum": NEVER, "description": f"Refused: {self.reason}."}

    def _check(self, value: Any) -> Any:
        if value:
            raise ValueError(self.reason)
        return value


def _options_schema(over_model: bool) -> dict[str, Any]:
    """What `options` of a request may say, or `parameters` of a model that is made."""
    properties: dict[str, Any] = {}
    for name, rule in parameters.HONOURED.items():
        if rule.kind is str:
            text = {"type": "string", "minLength": 1}
            known: dict[str, Any] = {"anyOf": [text, {"type": "array", "items": text}]}
        else:
            bounds = {"minimum": rule.low, "maximum": rule.high}
            known = {"type": "integer" if rule.kind is int else "number", **bounds, "description": rule.meaning}
        properties[name] = {"anyOf": [known, {"type": "null"}]} if over_model else known
    for name, why in parameters.DROPPED.items():
        properties[name] = {"description": f"Without effect: {why}."}
    return {"type": "object", "properties": properties, "additionalProperties": False}


_NEVER_DROPS = "is not possible: input is never dropped here; a prompt that does not fit is refused with its length"
KeepAlive = Annotated[float | None, BeforeValidator(keep_alive_seconds, json_schema_input_type=float | str | None)]
Options = Annotated[dict[str, Any], WithJsonSchema(_options_schema(over_model=True))]
Truncate = Annotated[bool | None, Refuse(f"truncating a prompt {_NEVER_DROPS}")]
Shift = Annotated[bool | None, Refuse(f"shifting the context {_NEVER_DROPS}")]
Images = Annotated[list[str] | None, Refuse("images cannot be read by the models that are served here")]
Insecure = Annotated[bool | None, Refuse("models are transferred only over connections that are checked")]
Level = bool | Literal["low", "medium", "high", "max"] | None


class Fields(BaseModel):
    """Part of a request."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Named(Fields):
    """A request about a model, which old clients call ``name`` and some clients both."""

    model: Annotated[str, Field(min_length=1, max_length=2048)]

    @model_validator(mode="before")
    @classmethod
    def _old_name(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not given.get("name"):
            return given
        if given.get("model") in (None, "", given["name"]):
            given = {**given, "model": given["name"]}
            del given["name"]
        return given


class Generation(Named):
    """What generate and chat have in common."""

    format: Literal["json", ""] | dict[str, Any] | None = None
    options: Options | None = None
    stream: bool | None = None
    keep_alive: KeepAlive = None
    think: Level = None
    truncate: Truncate = None
    shift: Shift = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    debug_render_only: Annotated[bool | None, Field(alias="_debug_render_only")] = None


class Generate(Generation):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: Annotated[list[int], Field(max_length=1_000_000)] | None = None
    raw: bool | None = None
    images: Images = None


class Function(Fields):
    index: int | None = None
    name: str
    description: str | None = None
    arguments: dict[str, Any] = {}


class Call(Fields):
    id: str | None = None
    type: str | None = None
    function: Function


class Message(Fields):
    role: Annotated[Literal["system", "user", "assistant", "tool"], BeforeValidator(lambda v: str(v).lower())]
    content: str | None = None
    thinking: str | None = None
    images: Images = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None

    def for_template(self) -> dict[str, Any]:
        """As chat templates know messages."""
        message: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        if self.thinking:
            message["reasoning_content"] = self.thinking
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    **({"id": call.id} if call.id else {}),
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": call.function.arguments},
                }
                for call in self.tool_calls
            ]
        if self.tool_name:
            message["name"] = self.tool_name
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        return message


class ToolFunction(BaseModel):
    """Kept as the client wrote it: templates print the whole definition."""

    model_config = ConfigDict(extra="allow")
    name: Annotated[str, Field(min_length=1)]


class Tool(BaseModel):
    model_config = ConfigDict(extra="allow")
    type: Literal["function"] = "function"
    function: ToolFunction


class Chat(Generation):
    messages: list[Message] = []
    tools: list[Tool] | None = None


class Embed(Named):
    input: str | list[str] = []
    truncate: bool | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    options: Options | None = None
    keep_alive: KeepAlive = None


class Embeddings(Named):
    prompt: str = ""
    options: Options | None = None
    keep_alive: KeepAlive = None


class Show(Named):
    verbose: bool | None = None


class Copy(Fields):
    source: str
    destination: str


class Transfer(Named):
    insecure: Insecure = None
    stream: bool | None = None


_NO_QUANTIZER = "the server does not quantize; create from a model that is quantized already"
_BUILT_IN = "it names code built into Ollama; use template, or the chat template that the model file carries"


class Create(Named):
    from_: Annotated[str | None, Field(alias="from")] = None
    files: dict[str, str] | None = None
    adapters: dict[str, str] | None = None
    template: str | None = None
    license: str | list[str] | None = None
    system: str | None = None
    parameters: Annotated[dict[str, Any], WithJsonSchema(_options_schema(over_model=False))] | None = None
    messages: list[Message] | None = None
    requires: str | None = None
    stream: bool | None = None
    quantize: Annotated[str | None, Refuse(_NO_QUANTIZER)] = None
    draft_quantize: Annotated[str | None, Refuse(_NO_QUANTIZER)] = None
    renderer: Annotated[str | None, Refuse(_BUILT_IN)] = None
    parser: Annotated[str | None, Refuse(_BUILT_IN)] = None
    draft_files: Annotated[dict[str, str] | None, Refuse("tokenmill uses no draft model; leave it out")] = None
    info: Annotated[dict[str, Any] | None, Refuse("the model file's own metadata is used")] = None
