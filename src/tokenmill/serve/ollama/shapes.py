"""The replies of Ollama's protocol, field by field, for the description of the server. Durations are nanoseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ConfigDict, Field

from tokenmill.serve.description import Shape


class Error(Shape):
    error: str


class Version(Shape):
    version: str


class CloudState(Shape):
    disabled: Literal[True]
    source: Literal["none"]


class Status(Shape):
    cloud: CloudState


class TokenScore(Shape):
    token: str
    logprob: float
    bytes: list[int]


class ScoredToken(TokenScore):
    top_logprobs: Sequence[TokenScore] = ()


class Rendered(Shape):
    rendered_template: str


class Line(Shape):
    """What answers of both kinds have; reason and measurements are in the last line."""

    model: str
    created_at: str
    done: bool = False
    done_reason: Literal["stop", "length", "repetition", "load", "unload"] = "stop"
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    logprobs: Sequence[ScoredToken] = ()
    debug_info: Rendered | None = Field(None, alias="_debug_info")
    """The prompt, where a request asks to see it instead of an answer."""


class Function(Shape):
    index: int
    name: str
    arguments: dict[str, Any]


class ToolCall(Shape):
    id: str
    function: Function


class Message(Shape):
    role: Literal["assistant"]
    content: str
    thinking: str = ""
    tool_calls: Sequence[ToolCall] = ()


class Generated(Line):
    response: str = ""
    thinking: str = ""
    context: Sequence[int] = ()


class Chatted(Line):
    message: Message | None = None


class Embedded(Shape):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class Embedding(Shape):
    embedding: list[float]


class Details(Shape):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str
    context_length: int | None = None
    embedding_length: int | None = None


Ability = Literal["completion", "tools", "insert", "thinking"]


class Listed(Shape):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details
    capabilities: list[Ability]


class Tags(Shape):
    models: list[Listed]


class Loaded(Shape):
    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int


class Ps(Shape):
    models: list[Loaded]


class Tensor(Shape):
    name: str
    type: str
    shape: list[int]


class Turn(Shape):
    role: str
    content: str


class Shown(Shape):
    model_config = ConfigDict(protected_namespaces=())
    license: str
    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[Ability]
    modified_at: str
    tensors: Sequence[Tensor] = ()
    system: str = ""
    messages: Sequence[Turn] = ()
    requires: str = ""


class Progress(Shape):
    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0
