"""The facade: a model by name, and text in and out of it.

    llm = LLM("smollm2:135m")
    llm.chat([{"role": "user", "content": "Capital of France?"}]).text

Everything below is somebody else's work put together: the store finds files, ``models`` loads them, ``text`` turns
messages into token ids and back, ``engine`` generates.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from tokenmill.adapt.lora import fold_lora
from tokenmill.core.errors import NotFoundError, TokenmillError, UsageError
from tokenmill.engine.embed import embed
from tokenmill.engine.engine import Engine
from tokenmill.engine.request import FinishReason, Logprobs, Request, Step
from tokenmill.engine.sampling_params import SamplingParams, from_ollama
from tokenmill.formats import TensorFile, open_tensors
from tokenmill.models.load import config_of, model_from_file, read_config, tokenizer_from_file
from tokenmill.store import ModelFiles, Store
from tokenmill.text.detokenizer import StreamingDetokenizer
from tokenmill.text.grammar import GuideFactory
from tokenmill.text.stop import StopMatcher
from tokenmill.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenmill.store.progress import Progress

Message = Mapping[str, Any]
Format = str | Mapping[str, Any] | None

# What Ollama samples with where neither the model nor the person says anything
OLLAMA_DEFAULTS = SamplingParams(temperature=0.8, top_k=40, top_p=0.9, repeat_last_n=64)
GENERATION_KEYS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")


@dataclass
class Stats:
    """Tokens and seconds of one prompt: ``prompt_s`` until its first new token, ``decode_s`` from there on."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """How many of them an earlier prompt had computed already."""
    completion_tokens: int = 0
    prompt_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True)
class Piece:
    """A bit of a streamed answer. The last has a ``finish_reason`` and the ``stats``."""

    text: str
    index: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[Logprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stats: Stats | None = None
    error: TokenmillError | None = None


@dataclass
class Choice:
    """One of the ``n`` answers to a prompt."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] | None = None
    finish_reason: FinishReason | None = None
    error: TokenmillError | None = None
    """Why this answer broke off while others went on (``finish_reason`` is ``error``). A lone answer raises it."""


@dataclass
class Completion:
    """The answers to one prompt; the first one's fields are at hand directly."""

    choices: list[Choice]
    prompt_tokens: int
    stats: Stats

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.choices[0].token_ids

    @property
    def logprobs(self) -> list[Logprobs] | None:
        return self.choices[0].logprobs

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.choices[0].finish_reason


class Answer:
    """Turns the tokens of one request into text, ends it where a stop text shows, and counts what it took."""

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        params = request.params
        self.request = request
        self.stats = Stats(prompt_tokens=len(request.prompt))
        self._started = time.perf_counter()
        self._detokenizer = StreamingDetokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens)
        self._matcher = StopMatcher(params.stop, include_stop=params.include_stop_str_in_output)

    def push(self, step: Step) -> Piece:
        """The text that this token makes certain; with the last one, the stats."""
        request, params, matcher = self.request, self.request.params, self._matcher
        self._count()
        ends = step.token_id in request.stop_ids and step.finish_reason == "stop"
        token_ids = () if step.token_id is None else (step.token_id,)
        said = () if ends and not params.include_stop_str_in_output else token_ids
        text = matcher.push("".join(map(self._detokenizer.push, said)))
        if matcher.matched is None and step.finish_reason is not None:
            text += matcher.push(self._detokenizer.flush())
            text += matcher.flush() if matcher.matched is None else ""
        reason = step.finish_reason
        if matcher.matched is not None:
            request.finish("stop")
            reason = "stop"
        logprobs = () if step.logprobs is None else (step.logprobs,)
        stats = None if reason is None else self.stats
        return Piece(text, request.index, token_ids, logprobs, reason, stats, request.error)

    def ended(self) -> Piece:
        """The last piece of a request that ended without a token: none was asked for, or its reader went."""
        return Piece("", self.request.index, (), (), self.request.finish_reason, self.stats, self.request.error)

    def _count(self) -> None:
        stats, seconds = self.stats, time.perf_counter() - self._started
        stats.prompt_s = stats.prompt_s or seconds
        stats.decode_s = seconds - stats.prompt_s
        stats.cached_tokens = self.request.cached_tokens
        stats.completion_tokens = len(self.request.output)


class LLM:
    """A language model on this machine.

    ``model``: a store name (pulled if it is missing), a Hugging Face folder, a ``.gguf`` file, or what a store resolved
    already (nothing is looked up then). ``adapter``: a LoRA adapter (PEFT folder or GGUF) folded into it, after those
    of its Modelfile. ``ctx_size``: tokens of prompt and answer together (default: the Modelfile's ``num_ctx``, else
    what the model can do).
    """

    def __init__(
        self,
        model: str | Path | ModelFiles,
        *,
        adapter: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        ctx_size: int | None = None,
        store: Store | None = None,
        progress: Progress | None = None,
    ) -> None:
        started = time.perf_counter()
        if not isinstance(model, ModelFiles):
            model = (store or Store()).resolve(str(model), pull=True, progress=progress)
        self.files = model
        self.name = self.files.name
        adapters = [*self.files.adapters, *([Path(adapter)] if adapter is not None else [])]
        if missing := [str(path) for path in adapters if not path.exists()]:
            raise NotFoundError(f"adapter {', '.join(missing)}: no such file or folder")
        file = open_tensors(self.files.path)
        self.ctx_size = self._context(ctx_size or self.files.parameters.get("num_ctx"), file)
        with ThreadPoolExecutor(1) as pool:  # the tokenizer is built while torch, which needs no GIL, decodes weights
            tokenizer = pool.submit(tokenizer_from_file, file)
            loaded = model_from_file(file, device=device, dtype=dtype)
        for path in adapters:
            fold_lora(loaded, path)
        self.model = loaded.decoder
        self.engine = Engine(self.model, max_length=self.ctx_size, max_waiting=sys.maxsize)
        self.ctx_size = self.engine.max_length  # smaller where the memory does not hold more
        self.tokenizer: Tokenizer = tokenizer.result()
        self.guides = GuideFactory(self.tokenizer, self.model.config.vocab_size)
        self.default_params = default_params(self.files.parameters, loaded.generation_config)
        self.load_s = time.perf_counter() - started

    def _context(self, wanted: int | None, file: TensorFile) -> int:
        """Checked before the weights are loaded: a mistake should not cost the person that time."""
        most = read_config(config_of(file)[0], str(file.path))[1].max_position
        if wanted is not None and not 1 <= wanted <= most:
            raise UsageError(f"a context of {wanted} tokens is not possible: {self.name} takes 1 to {most}")
        return wanted or most

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        format: Format = None,
    ) -> Completion:
        """Answer a conversation, rendered with the model's own chat template."""
        if isinstance(messages, str):
            raise UsageError("chat takes a list of messages with role and content; generate continues a text")
        return self._complete([self.prompt_ids(messages, tools)], params, format)[0]

    @overload
    def generate(self, prompts: str, params: SamplingParams | None = ..., *, format: Format = ...) -> Completion: ...
    @overload
    def generate(
        self, prompts: list[str] | tuple[str, ...], params: SamplingParams | None = ..., *, format: Format = ...
    ) -> list[Completion]: ...
    def generate(
        self, prompts: str | list[str] | tuple[str, ...], params: SamplingParams | None = None, *, format: Format = None
    ) -> Completion | list[Completion]:
        """Continue one text or several, as they stand; answers come in the prompts' order."""
        if isinstance(prompts, str):
            return self._complete([self.tokenizer.encode(prompts)], params, format)[0]
        return self._complete([self.tokenizer.encode(prompt) for prompt in prompts], params, format)

    def stream(
        self,
        prompt: str | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        format: Format = None,
    ) -> Iterator[Piece]:
        """Continue a text, or answer a conversation, piece by piece. Closing the iterator ends the work."""
        return self._stream([self.prompt_ids(prompt, tools)], params, format)

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """One vector of length one a text, float32 [len(texts), hidden_size]."""
        return embed(self.model, [self.tokenizer.encode(text) for text in texts])

    def prompt_ids(
        self, prompt: str | Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """The token ids that the model is given for a text or a conversation."""
        if isinstance(prompt, str):
            if tools:
                raise UsageError("tools go with messages, not with a plain text prompt")
            return self.tokenizer.encode(prompt)
        if self.files.system and not any(message.get("role") == "system" for message in prompt):
            prompt = [{"role": "system", "content": self.files.system}, *prompt]
        template = self.files.template
        if template is not None:
            from tokenmill.text.go_template import looks_like_go, render_chat

            if looks_like_go(template):
                return self.tokenizer.encode(render_chat(template, prompt, tools=tools))
        return self.tokenizer.encode_chat(prompt, tools=tools, chat_template=template)

    def requests(
        self, prompts: Sequence[list[int]], params: SamplingParams, format: Format = None, **more: Any
    ) -> list[Request]:
        """One request for each sample of each prompt, numbered in that order; ``more`` are further fields of them."""
        guide = None if format is None else self.guides.from_format(format if isinstance(format, str) else dict(format))
        return [
            Request(
                prompt=ids,
                params=params,
                seed=None if params.seed is None else params.seed + sample,
                eos_token_ids=self.tokenizer.eos_token_ids,
                guide=None if guide is None else guide.copy(),
                index=number * params.n + sample,
                **more,
            )
            for number, ids in enumerate(prompts)
            for sample in range(params.n)
        ]

    def _stream(self, prompts: Sequence[list[int]], params: SamplingParams | None, format: Format) -> Iterator[Piece]:
        if params is not None and not isinstance(params, SamplingParams):
            raise UsageError(f"params must be one SamplingParams for all prompts, not {type(params).__name__}")
        requests = self.requests(prompts, params or self.default_params, format)
        steps = self.engine.run(requests)  # checks now, so that a bad prompt fails here

        def pieces() -> Iterator[Piece]:
            answers = [Answer(self.tokenizer, request) for request in requests]
            for step in steps:
                if step.request.error is not None and len(requests) == 1:
                    raise step.request.error
                yield answers[step.request.index].push(step)
            for answer in answers:
                if answer.request.params.max_tokens == 0:  # nothing was generated, and that is an answer too
                    yield answer.ended()

        return pieces()

    def _complete(
        self, prompts: Sequence[list[int]], params: SamplingParams | None, format: Format
    ) -> list[Completion]:
        n = params.n if isinstance(params, SamplingParams) else self.default_params.n
        return collect(self._stream(prompts, params, format), [len(ids) for ids in prompts], n)


def collect(pieces: Iterable[Piece], prompt_tokens: Sequence[int], n: int) -> list[Completion]:
    """Whole answers out of their pieces: one Completion a prompt, with ``n`` choices each."""
    choices = [Choice(number % n) for number in range(len(prompt_tokens) * n)]
    stats = [Stats() for _ in choices]
    for piece in pieces:
        choice = choices[piece.index]
        choice.text += piece.text
        choice.token_ids += piece.token_ids
        if piece.logprobs:
            choice.logprobs = [*(choice.logprobs or []), *piece.logprobs]
        if piece.stats is not None:
            choice.finish_reason, choice.error = piece.finish_reason, piece.error
            stats[piece.index] = piece.stats
    return [Completion(choices[i * n : (i + 1) * n], count, stats[i * n]) for i, count in enumerate(prompt_tokens)]


def default_params(modelfile: Mapping[str, Any], generation_config: Mapping[str, Any]) -> SamplingParams:
    """What a model samples with unless a person says: its Modelfile, over its generation_config, over Ollama's."""
    given = {key: generation_config[key] for key in GENERATION_KEYS if generation_config.get(key) is not None}
    base = SamplingParams.from_mapping(given) if given else OLLAMA_DEFAULTS
    return replace(base, **from_ollama(modelfile))
