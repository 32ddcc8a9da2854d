"""A model of a running server, with as much of LLM's surface as ``run`` uses: no weights, no torch, no waiting.

``run`` asks the server where there is one of ours that has the model. What a server cannot do for it (an adapter, a
larger context than it serves, determinism) is done in this process, and the person is told why. The MESSAGE turns of
a model stay with the server, which puts them before every conversation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.cli.output import note, sections
from tokenmill.cli.remote import ask, is_ours, lines, server_url, something_listens
from tokenmill.cli.repl.session import Session
from tokenmill.core.errors import TokenmillError, UsageError
from tokenmill.engine.sampling_params import from_ollama
from tokenmill.store import ModelFiles
from tokenmill.store.names import parse_reference
from tokenmill.store.parameters import read_text


@dataclass(frozen=True)
class ServedStats:
    """A server's figures of one answer, as LLM's, with the times that only it knows. Seconds."""

    prompt_tokens: int
    completion_tokens: int
    prompt_s: float
    decode_s: float
    load_s: float
    total_s: float


@dataclass(frozen=True)
class ServedSettings:
    """What the person chose, by Ollama's names; the server knows the model's own settings. ``max_tokens`` is the limit
    that either of them set."""

    options: Mapping[str, Any]
    max_tokens: int | None


@dataclass(frozen=True)
class ServedPiece:
    """A bit of an answer; the last has the reason and the server's figures."""

    text: str
    finish_reason: str | None = None
    stats: ServedStats | None = None


@dataclass(frozen=True)
class ServedTokenizer:
    """Says whether messages can be put to the model; the server does the rest."""

    chat_template: str | None


class ServedModel:
    """One model behind HTTP. ``ctx_size`` is what the server gives it, or the smaller one that was asked for."""

    def __init__(self, name: str, shown: Mapping[str, Any], ctx_size: int) -> None:
        self.name, self.ctx_size, self._shown = name, ctx_size, shown
        self.files = ModelFiles(
            name=name,
            path=Path(name),
            template=shown["template"] or None,
            system=shown.get("system"),
            parameters=_parameters(shown["parameters"]),
        )
        self.tokenizer = ServedTokenizer(self.files.template)

    def settings(self, options: Mapping[str, Any]) -> ServedSettings:
        """The session's options as :meth:`stream` takes them."""
        return ServedSettings(options, from_ollama({**self.files.parameters, **options}).get("max_tokens"))

    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The token ids of a conversation, as the server counts them."""
        return list(ask("POST", "/tokenize", {"model": self.name, "messages": list(messages)})["tokens"])

    def stream(
        self, prompt: str | Sequence[Mapping[str, str]], settings: ServedSettings, *, format: Any = None
    ) -> Iterator[ServedPiece]:
        """The answer as it comes; closing it ends the server's work. Thinking is in the text, between its marks."""
        body: dict[str, Any] = {"model": self.name, "options": dict(settings.options)}
        body |= {} if format is None else {"format": format}
        if isinstance(prompt, str):
            said = lines("/api/generate", {**body, "prompt": prompt, "raw": True})
        else:
            said = lines("/api/chat", {**body, "messages": list(prompt)})
        thinking = False
        for line in said:
            message = line.get("message") or {"content": line.get("response", "")}
            thought, content = message.get("thinking", ""), message["content"]
            text = ("<think>\n" if thought and not thinking else "") + thought
            thinking = thinking or bool(thought)
            if thinking and (content or line["done"]):
                text, thinking = text + "\n</think>\n\n", False
            text += content
            yield ServedPiece(text, line["done_reason"], _stats(line)) if line["done"] else ServedPiece(text)

    def show(self, what: str) -> str:
        """The texts of ``/show``."""
        if what != "info":
            return str(self._shown[what])
        details, info = self._shown["details"], self._shown["model_info"]
        rows = [("architecture", details["family"]), ("parameters", details["parameter_size"])]
        rows += [("context length", str(self.ctx_size)), ("quantization", details["quantization_level"])]
        rows += [("embedding length", str(info.get(f"{details['family']}.embedding_length", "")))]
        abilities = [(ability, "") for ability in self._shown["capabilities"]]
        return sections({"Model": [row for row in rows if row[1]], "Capabilities": abilities})


def find(session: Session) -> ServedModel | None:
    """The session's model on a running server. None where there is none, or, with a note, where it cannot do it."""
    if not something_listens() or _is_path(session.model):
        return None
    url = server_url()
    if not is_ours(url):
        return None
    try:
        return _asked(session)
    except TokenmillError as error:
        note(f"(running in this process, for the server at {url} cannot: {error})")
        return None


def _asked(session: Session) -> ServedModel:
    if session.adapters:
        raise UsageError("it takes no adapter from a caller")
    if session.deterministic:
        raise UsageError("whether it is deterministic was said when it was started")
    if session.kv_cache_dtype != "auto":
        raise UsageError("how it keeps keys and values was said when it was started")
    shown = ask("POST", "/api/show", {"model": session.model})
    most = ask("GET", f"/v1/models/{session.model}")["max_model_len"]
    if most is None or (session.ctx_size or 0) > most:
        raise UsageError(f"it gives {session.model} a context of {most or 'unknown length'}")
    return ServedModel(session.model, shown, session.ctx_size or most)


def _is_path(name: str) -> bool:
    return parse_reference(name).kind == "path"


def _parameters(text: str) -> dict[str, Any]:
    """The parameters of a model out of the text that show gives: a name and a value a line."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        read, _ = read_text(name, value.strip().strip('"') if name == "stop" else value.strip())
        if name == "stop":
            found.setdefault(name, []).append(read)
        elif read is not None:
            found[name] = read
    return found


def _stats(line: Mapping[str, Any]) -> ServedStats:
    return ServedStats(
        prompt_tokens=line["prompt_eval_count"],
        completion_tokens=line["eval_count"],
        prompt_s=line["prompt_eval_duration"] / 1e9,
        decode_s=line["eval_duration"] / 1e9,
        load_s=line["load_duration"] / 1e9,
        total_s=line["total_duration"] / 1e9,
    )
