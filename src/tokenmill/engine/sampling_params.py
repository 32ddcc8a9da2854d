"""What a request may ask of the sampler. No torch: servers and schedulers read it too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tokenmill.core.errors import UsageError, did_you_mean
from tokenmill.engine.repetition import RepetitionDetection

MAX_LOGPROBS = 100
MAX_N = 1024
MAX_STOPS = 64


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. The defaults draw from the model's own distribution until it ends the text.

    Names and meanings are those of OpenAI's API, vLLM and transformers. Every value is checked here, and all problems
    come in one :class:`UsageError`.
    """

    n: int = 1
    """Answers to each prompt; with a seed, answer i uses seed + i."""
    temperature: float = 1.0
    """0 takes the most likely token, exactly."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most likely tokens that together reach this probability."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the most likely one."""
    typical_p: float = 1.0
    """Keep the tokens nearest to the expected surprise that together reach this probability."""
    repetition_penalty: float = 1.0
    """Divide (or, where negative, multiply) the logits of tokens seen in prompt and answer; 1 is off."""
    repeat_last_n: int = -1
    """How far back the repetition penalty looks; -1 is all the way, 0 nowhere."""
    presence_penalty: float = 0.0
    """Subtracted once from tokens that the answer already has."""
    frequency_penalty: float = 0.0
    """Subtracted once for each time that the answer already has the token."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    seed: int | None = None
    """Makes the draw repeatable, whatever else is in the batch."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer, beside the model's own end-of-text tokens."""
    ignore_eos: bool = False
    """Go on after the model's end-of-text tokens."""
    min_tokens: int = 0
    """End-of-text and stop tokens are not drawn before this many."""
    max_tokens: int | None = None
    """At most this many new tokens; None is up to the end of the context."""
    repetition_detection: RepetitionDetection | None = None
    """End an answer that only repeats itself; None lets it."""
    logprobs: int | None = None
    """Report the log-probability of each token and of this many most likely ones, before any of the above."""
    drawn_logprobs: bool = False
    """``logprobs`` are of the distribution that was drawn from, temperature and all else included."""
    prompt_logprobs: int | None = None
    """The same for each token of the prompt, which is then computed whole, without what is cached of it."""
    include_stop_str_in_output: bool = False
    """Keep the stop text at the end of the answer."""
    skip_special_tokens: bool = True
    """Leave control tokens out of the text."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        problems = [
            f"{name} must be {what}, not {getattr(self, name)!r}"
            for name, what, good in _CHECKS
            if not good(getattr(self, name))
        ]
        if problems:
            raise UsageError("; ".join(problems))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], **more: Any) -> SamplingParams:
        """From names and values as a configuration has them; an unknown name is an error that names the nearest."""
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise UsageError(f"unknown sampling parameter {name!r}{did_you_mean(name, known)}")
        return cls(**{**values, **more})


OLLAMA_NAMES = {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}


def from_ollama(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by Ollama's names (Modelfile, ``/set parameter``, ``/api``) to fields of SamplingParams.

    A negative ``num_predict`` means no limit, a negative ``seed`` a new one each time. ``num_ctx`` is left out: it
    belongs to the loaded model.
    """
    changes: dict[str, Any] = {}
    for name, value in options.items():
        if name in ("num_predict", "seed") and value < 0:
            value = None
        if name != "num_ctx":
            changes[OLLAMA_NAMES.get(name, name)] = value
    return changes


def as_ollama(defaults: SamplingParams, modelfile: Mapping[str, Any], options: Mapping[str, Any]) -> SamplingParams:
    """A model's ``defaults`` with a person's options by Ollama's names over them.

    Where neither they nor the Modelfile said how long an answer may be, one that only repeats itself ends; Ollama, too,
    has no limit but gives up when it sees one token a hundred times. Who sets ``num_predict``, be it to -1 for no
    limit, gets just that.
    """
    bound = "num_predict" in options or "num_predict" in modelfile
    loops = None if bound else RepetitionDetection()
    return replace(defaults, **from_ollama(options), repetition_detection=loops)


def _real(least: float, most: float = math.inf) -> Any:
    return lambda v: isinstance(v, int | float) and not isinstance(v, bool) and least <= v <= most and math.isfinite(v)


def _whole(least: int, most: int = 2**63 - 1) -> Any:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v <= most


def _or_none(check: Any) -> Any:
    return lambda v: v is None or check(v)


def _all(check: Any, most: int) -> Any:
    return lambda v: len(v) <= most and all(check(item) for item in v)


def _text(v: Any) -> bool:
    return isinstance(v, str) and 0 < len(v) <= 4096


def _bias(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_whole(0)(k) and _real(-1e6, 1e6)(v) for k, v in value.items())


_CHECKS = (
    ("n", f"a whole number from 1 to {MAX_N}", _whole(1, MAX_N)),
    ("temperature", "a number from 0 to 100", _real(0, 100)),
    ("top_k", "a whole number, 0 (off) or more", _whole(0)),
    ("top_p", "a number above 0, up to 1", lambda v: _real(0, 1)(v) and v > 0),
    ("min_p", "a number from 0 to 1", _real(0, 1)),
    ("typical_p", "a number above 0, up to 1", lambda v: _real(0, 1)(v) and v > 0),
    ("repetition_penalty", "a number above 0, up to 100", lambda v: _real(0, 100)(v) and v > 0),
    ("repeat_last_n", "a whole number, -1 (all) or more", _whole(-1)),
    ("presence_penalty", "a number from -100 to 100", _real(-100, 100)),
    ("frequency_penalty", "a number from -100 to 100", _real(-100, 100)),
    ("logit_bias", "a mapping of token ids to numbers", _bias),
    ("seed", "a whole number or None", _or_none(_whole(-(2**63)))),
    ("stop", f"at most {MAX_STOPS} texts that are not empty", _all(_text, MAX_STOPS)),
    ("stop_token_ids", "token ids", _all(_whole(0), 4096)),
    ("min_tokens", "a whole number, 0 or more", _whole(0)),
    ("max_tokens", "a whole number, 0 or more, or None", _or_none(_whole(0))),
    ("repetition_detection", "a RepetitionDetection or None", _or_none(lambda v: isinstance(v, RepetitionDetection))),
    ("logprobs", f"a whole number from 0 to {MAX_LOGPROBS}, or None", _or_none(_whole(0, MAX_LOGPROBS))),
    ("prompt_logprobs", f"a whole number from 0 to {MAX_LOGPROBS}, or None", _or_none(_whole(0, MAX_LOGPROBS))),
    ("drawn_logprobs", "true or false", lambda v: isinstance(v, bool)),
    ("ignore_eos", "true or false", lambda v: isinstance(v, bool)),
    ("include_stop_str_in_output", "true or false", lambda v: isinstance(v, bool)),
    ("skip_special_tokens", "true or false", lambda v: isinstance(v, bool)),
)
