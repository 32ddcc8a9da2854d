"""One answer of a model, streamed to wherever it goes, with the figures that ``--verbose`` prints.

Shared by the one-shot ``run`` and the chat. Imports no torch: the model is whatever has LLM's ``stream``, in this
process or on a server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tokenmill.cli.output import human_duration
from tokenmill.cli.served import ServedModel, ServedSettings, ServedStats
from tokenmill.engine.sampling_params import as_ollama

if TYPE_CHECKING:
    from tokenmill import LLM, SamplingParams
    from tokenmill.llm import Stats

INTERRUPTED = "interrupted"
CONTEXT_FULL = "(the answer ends here because the context is full)"
GOES_ROUND = (
    "(the answer ends here because it only repeats itself; --max-tokens N, or in a chat /set parameter num_predict N, "
    "lets it go on to N tokens)"
)


@dataclass(frozen=True)
class Answer:
    """What came back. Times in seconds; ``finish_reason`` is the engine's, or ``interrupted`` after Ctrl-C."""

    text: str
    finish_reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_s: float = 0.0
    decode_s: float = 0.0
    total_s: float = 0.0
    load_s: float = 0.0

    def document(self, model: str) -> dict[str, Any]:
        """The answer as ``--json`` prints it."""
        return {"model": model, **asdict(self)}

    def figures(self) -> str:
        """The table of ``--verbose``: Ollama's eight lines."""
        rows = [("total duration", human_duration(self.total_s)), ("load duration", human_duration(self.load_s))]
        for name, count, seconds in (
            ("prompt eval", self.prompt_tokens, self.prompt_s),
            ("eval", self.completion_tokens, self.decode_s),
        ):
            rows += [(f"{name} count", f"{count} token(s)"), (f"{name} duration", human_duration(seconds))]
            rows += [(f"{name} rate", f"{count / seconds:.2f} tokens/s" if seconds else "-")]
        return "\n".join(f"{f'{name}:':<21} {value}" for name, value in rows)


def speaks_chat(llm: LLM | ServedModel) -> bool:
    """Whether messages can be put to the model: it has a template, of its Modelfile or of its own files."""
    return bool(llm.files.template or llm.tokenizer.chat_template)


def settings_of(llm: LLM | ServedModel, options: Mapping[str, Any]) -> SamplingParams | ServedSettings:
    """The session's `options` over the model's own, as its ``stream`` takes them."""
    if isinstance(llm, ServedModel):
        return llm.settings(options)
    return as_ollama(llm.default_params, llm.files.parameters, options)


def told_end(answer: Answer, params: SamplingParams | ServedSettings) -> str | None:
    """What a person should know about how the answer ended: the context did, and no limit that somebody set, or it
    went round in circles."""
    if answer.finish_reason == "length" and params.max_tokens is None:
        return CONTEXT_FULL
    return GOES_ROUND if answer.finish_reason == "repetition" else None


def ask(
    llm: LLM | ServedModel,
    prompt: str | Sequence[dict[str, str]],
    params: SamplingParams | ServedSettings,
    write: Callable[[str], object],
    *,
    format: str | dict[str, Any] | None = None,
    load_s: float = 0.0,
    interruptible: bool = False,
) -> Answer:
    """Stream the answer to `write`. `load_s`, the time that the model took to load for this answer, adds to the total.

    With `interruptible` Ctrl-C ends the answer and what was said so far is returned; without it Ctrl-C goes on up.
    """
    begin = time.perf_counter()
    said: list[str] = []
    reason: str = INTERRUPTED
    stats: Stats | ServedStats | None = None
    model: Any = llm  # each takes the settings that `settings_of` gave for it
    # format= constrains the decoding and costs a grammar; it is passed only where it was asked for
    extra: dict[str, Any] = {} if format is None else {"format": format}
    try:
        for piece in model.stream(prompt, params, **extra):
            said.append(piece.text)
            write(piece.text)
            if piece.finish_reason is not None:
                reason, stats = piece.finish_reason, piece.stats
    except KeyboardInterrupt:
        if not interruptible:
            raise
    total = load_s + time.perf_counter() - begin
    if isinstance(stats, ServedStats):
        total, load_s = stats.total_s, stats.load_s
    if stats is None:
        return Answer("".join(said), reason, total_s=total, load_s=load_s)
    return Answer(
        text="".join(said),
        finish_reason=reason,
        prompt_tokens=stats.prompt_tokens,
        completion_tokens=stats.completion_tokens,
        prompt_s=stats.prompt_s,
        decode_s=stats.decode_s,
        total_s=total,
        load_s=load_s,
    )
