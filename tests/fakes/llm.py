"""A model without weights for tests of the command line: answers with fixed words, remembers what it was asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.store import ModelFiles


class FakeTokenizer:
    """Says only whether there is a chat template."""

    def __init__(self, chat_template: str | None = "fake") -> None:
        self.chat_template = chat_template


@dataclass
class FakeLLM:
    """Streams `pieces`; an exception among them is raised at its place."""

    pieces: list[Any] = field(default_factory=lambda: ["Hello", " there", "."])
    files: ModelFiles = field(default_factory=lambda: ModelFiles(name="fake:latest", path=Path("fake.gguf")))
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)
    ctx_size: int = 64
    default_params: SamplingParams = field(default_factory=SamplingParams)
    finish_reason: str = "stop"
    load_s: float = 0.5
    asked: list[Any] = field(default_factory=list)
    params: list[SamplingParams] = field(default_factory=list)
    extra: list[dict[str, Any]] = field(default_factory=list)

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """One token for the role of each message, one for each word."""
        return [0 for message in messages for _ in (message["role"], *message["content"].split())]

    def stream(self, prompt: Any, params: SamplingParams, **extra: Any) -> Iterator[SimpleNamespace]:
        self.asked.append(prompt)
        self.params.append(params)
        self.extra.append(extra)
        for number, piece in enumerate(self.pieces):
            if not isinstance(piece, str):
                raise piece
            last = number == len(self.pieces) - 1
            stats = SimpleNamespace(prompt_tokens=7, completion_tokens=len(self.pieces), prompt_s=0.1, decode_s=0.5)
            yield SimpleNamespace(
                text=piece, finish_reason=self.finish_reason if last else None, stats=stats if last else None
            )
