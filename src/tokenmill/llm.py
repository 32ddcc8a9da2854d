"""The facade: a model by name, and text in and out of it.

    llm = LLM("smollm2:135m")
    llm.chat([{"role": "user", "content": "Capital of France?"}]).text

Everything below is somebody else's work put together: the store finds files, ``models`` loads them, ``text`` turns
messages into token ids and back, ``engine`` generates.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from tokenmill.answers import Answer, Choice, Completion, Piece, Score, Stats, collect
from tokenmill.core.errors import MissingFileError, UsageError
from tokenmill.engine.embed import embed
from tokenmill.engine.engine import Engine
from tokenmill.engine.request import Logprobs, Request
from tokenmill.engine.sampling_params import SamplingParams, from_ollama
from tokenmill.formats import TensorFile, open_tensors
from tokenmill.models.load import (
    Model,
    config_of,
    load_tokenizer,
    model_from_file,
    read_config,
    tokenizer_from_file,
)
from tokenmill.models.resize import grow_vocabulary
from tokenmill.quant.nf4 import quantize_linears
from tokenmill.quant.serving import format_of, quantise_loaded
from tokenmill.store import ModelFiles, Store
from tokenmill.text.grammar import GuideFactory
from tokenmill.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenmill.store.progress import Progress

__all__ = ["LLM", "Answer", "Choice", "Completion", "Format", "Piece", "Score", "Stats", "collect"]

Message = Mapping[str, Any]
Format = str | Mapping[str, Any] | None

# What Ollama samples with where neither the model nor the person says anything
OLLAMA_DEFAULTS = SamplingParams(temperature=0.8, top_k=40, top_p=0.9, repeat_last_n=64)
GENERATION_KEYS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")


class LLM:
    """A language model on this machine.

    ``model``: a store name (pulled if it is missing), a Hugging Face folder, a ``.gguf`` file, or what a store resolved
    already (nothing is looked up then). ``adapter``: an adapter (PEFT folder or GGUF) or several, put on it after those
    of its Modelfile. ``quant``: ``int8``, ``int4``, ``fp8`` or ``nf4``, what weights are rounded to while they are
    loaded (``quantize`` loses less, for it looks at data). ``ctx_size``: tokens of prompt and answer together
    (default: the Modelfile's ``num_ctx``, else what the model can do). ``deterministic``: the same request gives the
    same logits to the last bit, whatever else is in the batch; slower (see ``ops/batch_invariant.py``).
    ``kv_cache_dtype``: how keys and values are kept, ``auto`` (as the model computes; ``bf16`` beside quantised
    weights), ``fp32``, ``bf16`` or ``int8`` (native kernels only).
    """

    def __init__(
        self,
        model: str | Path | ModelFiles,
        *,
        adapter: str | Path | Sequence[str | Path] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        quant: str | None = None,
        ctx_size: int | None = None,
        deterministic: bool = False,
        kv_cache_dtype: str = "auto",
        store: Store | None = None,
        progress: Progress | None = None,
    ) -> None:
        started = time.perf_counter()
        if not isinstance(model, ModelFiles):
            model = (store or Store()).resolve(str(model), pull=True, progress=progress)
        self.files = model
        self.name = self.files.name
        given = [adapter] if isinstance(adapter, str | Path) else adapter or []
        adapters = [*self.files.adapters, *map(Path, given)]
        if missing := [str(path) for path in adapters if not path.exists()]:
            raise MissingFileError(f"adapter {', '.join(missing)}: no such file or folder")
        rounded = None if quant is None else format_of(quant)
        file = open_tensors(self.files.path)
        most = read_config(config_of(file)[0], str(file.path))[1].max_position
        self._wanted_ctx = self._context(ctx_size, most)  # before the weights are loaded, for that takes time
        with ThreadPoolExecutor(1) as pool:  # the tokenizer is built while torch, which needs no GIL, decodes weights
            tokenizer = pool.submit(tokenizer_with_adapters, file, adapters)
            loaded = model_from_file(file, device=device, dtype=dtype, pack=rounded is None)
            if rounded is not None:
                quantise_loaded(loaded, rounded, pack=dtype in (None, "auto"))
        self.model = loaded.decoder
        self.virtual = put_adapters(loaded, adapters) if adapters else []
        """What a prompt or prefix adapter puts before every prompt: token ids behind the vocabulary."""
        self._deterministic, self._kv_cache_dtype = deterministic, kv_cache_dtype
        self.engine = self._new_engine()
        self.ctx_size = self.engine.max_length  # smaller where the memory does not hold more
        self.tokenizer: Tokenizer = tokenizer.result()
        self.guides = GuideFactory(self.tokenizer, self.model.config.vocab_size)
        self._generation_config = loaded.generation_config
        self.default_params = default_params(self.files.parameters, self._generation_config)
        self.load_s = time.perf_counter() - started

    def sibling(self, files: ModelFiles, *, ctx_size: int | None = None) -> LLM:
        """The same weights under another Modelfile of theirs: its system message, template and parameters. The engine
        is shared too, unless another context is wanted. ``files`` has the same weights and adapters: see to that."""
        other = copy(self)
        other.files, other.name = files, files.name
        other.default_params = default_params(files.parameters, self._generation_config)
        other._wanted_ctx = other._context(ctx_size, self.model.config.max_position)
        if other._wanted_ctx != self._wanted_ctx:
            other.engine = other._new_engine()
            other.ctx_size = other.engine.max_length
        return other

    def _context(self, wanted: int | None, most: int) -> int:
        wanted = wanted or self.files.parameters.get("num_ctx")
        if wanted is not None and not 1 <= wanted <= most:
            raise UsageError(f"a context of {wanted} tokens is not possible: {self.name} takes 1 to {most}")
        return wanted or most

    def _new_engine(self) -> Engine:
        # max_waiting: whoever calls from Python may give as many prompts as they like
        return Engine(
            self.model,
            max_length=self._wanted_ctx,
            max_waiting=sys.maxsize,
            deterministic=self._deterministic,
            kv_cache_dtype=self._kv_cache_dtype,
        )

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
        return self.complete([self.prompt_ids(messages, tools)], params, format)[0]

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
            return self.complete([self.tokenizer.encode(prompts)], params, format)[0]
        return self.complete([self.tokenizer.encode(prompt) for prompt in prompts], params, format)

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

    def score(
        self, prompts: Sequence[str], continuations: Sequence[str] | None = None, *, top_logprobs: int = 1
    ) -> list[Score]:
        """How likely each text is; with ``continuations``, how likely each is after the prompt in its place.

        A prompt and its continuation are cut into tokens together, as one text; blanks at the end of the prompt count
        as the continuation's, since tokens begin with them (both as lm-eval does it). ``top_logprobs``: how many of the
        most likely tokens are told at each place, one at least. Prompts that begin alike share the work.
        """
        if isinstance(prompts, str) or isinstance(continuations, str):
            raise UsageError("score takes lists of texts")
        if continuations is not None and len(continuations) != len(prompts):
            raise UsageError(f"{len(prompts)} prompts and {len(continuations)} continuations: give one for each")
        ends = [""] * len(prompts) if continuations is None else continuations
        ids = [self.tokenizer.encode(prompt + end) for prompt, end in zip(prompts, ends, strict=True)]
        if continuations is None:
            return self.score_ids(ids, top_logprobs=top_logprobs)
        starts = [len(self.tokenizer.encode(prompt.rstrip())) for prompt in prompts]
        # a continuation that melts into the prompt's last token is scored with it
        starts = [min(start, len(one) - 1) for start, one in zip(starts, ids, strict=True)]
        return self.score_ids(ids, starts, top_logprobs=top_logprobs)

    def score_ids(
        self, prompts: Sequence[list[int]], starts: Sequence[int] | None = None, *, top_logprobs: int = 1
    ) -> list[Score]:
        """How likely the tokens of each prompt are, from the place in ``starts`` on (default: from the first)."""
        params = SamplingParams(max_tokens=0, prompt_logprobs=max(1, top_logprobs))
        requests = self.requests(prompts, params)
        first = [len(self.virtual) + start for start in starts or [0] * len(prompts)]
        for request, start in zip(requests, first, strict=True):
            request.prompt_logprobs = [None] * max(1, start)
        for step in self.engine.run(requests):
            if step.request.error is not None:
                raise step.request.error
        return [Score(r.prompt[s:], r.prompt_logprobs[s:]) for r, s in zip(requests, first, strict=True)]

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
        scored: list[list[Logprobs | None]] = [[] for _ in prompts]
        return [
            Request(
                prompt=[*self.virtual, *ids],
                params=params,
                seed=None if params.seed is None else params.seed + sample,
                eos_token_ids=self.tokenizer.eos_token_ids,
                guide=None if guide is None else guide.copy(),
                index=number * params.n + sample,
                prompt_logprobs=scored[number],  # one list for all samples: whoever gets there first writes it
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
                params = answer.request.params
                if params.max_tokens == 0 and params.prompt_logprobs is None:  # no step was made for it
                    yield answer.ended()

        return pieces()

    def complete(
        self, prompts: Sequence[list[int]], params: SamplingParams | None = None, format: Format = None
    ) -> list[Completion]:
        """Continue prompts given as token ids, such as :meth:`prompt_ids` makes; answers come in the prompts' order."""
        n = params.n if isinstance(params, SamplingParams) else self.default_params.n
        return collect(self._stream(prompts, params, format), [len(ids) for ids in prompts], n)


def default_params(modelfile: Mapping[str, Any], generation_config: Mapping[str, Any]) -> SamplingParams:
    """What a model samples with unless a person says: its Modelfile, over its generation_config, over Ollama's."""
    given = {key: generation_config[key] for key in GENERATION_KEYS if generation_config.get(key) is not None}
    base = SamplingParams.from_mapping(given) if given else OLLAMA_DEFAULTS
    return replace(base, **from_ollama(modelfile))


def put_adapters(model: Model, paths: Sequence[Path]) -> list[int]:
    """Put adapters on a model for good, and make it before what each of them was trained on: packed, with new tokens.

    Returns the ids of virtual tokens that go before every prompt. Raises what :func:`tokenmill.adapt.stack_adapters`
    raises.
    """
    from tokenmill.adapt import read_note, stack_adapters, virtual_ids  # with pydantic: most models have no adapter

    notes = [read_note(path) for path in paths]
    if (size := max((note.vocab_size or 0 for note in notes), default=0)) > model.network.config.vocab_size:
        grow_vocabulary(model, size)
    packed = {note.quantization for note in notes if note.quantization}
    if len(packed) > 1:
        raise UsageError("these adapters were trained on differently quantised weights; use one at a time")
    if packed:
        quantize_linears(model.network, double="nf4-double" in packed)
    stack_adapters(model, paths)
    return virtual_ids(model.decoder)


def tokenizer_with_adapters(file: TensorFile, paths: Sequence[Path]) -> Tokenizer:
    """The model's tokenizer, or that of the last adapter that brought one of its own (with new tokens)."""
    own = [path for path in paths if (path / "tokenizer.json").is_file()]
    return load_tokenizer(own[-1]) if own else tokenizer_from_file(file)
