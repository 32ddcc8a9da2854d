"""A model on our engine as lm-eval (EleutherAI's lm-evaluation-harness) wants it, in process.

    from tokenmill import LLM
    from tokenmill.evals.lm_eval_model import EngineLM
    lm_eval.simple_evaluate(model=EngineLM(LLM("smollm2:135m", dtype="float32")), tasks=["arc_easy"])

Texts are cut into tokens as lm-eval's class for transformers does it: what begins with the begin-of-text token gets no
second one, an empty context is that token (else end of text), prompts that are too long lose their beginning. A text as
long as the context has one token less before it than there, since the engine reads the last token too.

Needs lm-eval (the extra ``lm-eval``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tokenmill.core.errors import UsageError
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.evals.local import Facade, prefix_id

MAX_GEN_TOKS = 256
"""New tokens where a task does not say, as lm-eval's class for transformers."""
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_TAKEN = {"until", "do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", *_LENGTHS}


class EngineLM(TemplateLM):  # type: ignore[misc]
    """An :class:`tokenmill.LLM`; ``batch_size`` sequences are under way at a time."""

    def __init__(self, llm: Facade, *, batch_size: int = 16, add_bos_token: bool | None = None) -> None:
        super().__init__()
        self.llm, self.batch_size, self._add_bos = llm, batch_size, add_bos_token
        self.max_length = llm.ctx_size - 1

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        token_id = self.llm.tokenizer.eos_token_id
        return prefix_id(self.llm.tokenizer) if token_id is None else token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        return prefix_id(self.llm.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of requests."""
        return f"{self.llm.files.name}-{self.llm.tokenizer.fingerprint}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that conversations are rendered with, for lm-eval's record."""
        if chat_template is False:
            return None
        if isinstance(chat_template, str):
            raise UsageError("a chat template by name is not taken: the model's own is used")
        return self.llm.tokenizer.chat_template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text."""
        return self.llm.tokenizer.render_chat(
            chat_history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text; BOS where the model's own tokenizer puts it, unless it is written there already."""
        tokenizer = self.llm.tokenizer
        special = self._add_bos if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and string.startswith(tokenizer.id_to_token(self.prefix_token_id) or "\0"):
            special = False
        if special:
            ids = tokenizer.encode(string)
            return ids if ids[:1] == [self.prefix_token_id] else [self.prefix_token_id, *ids]
        return tokenizer.encode(string, add_special_tokens=special is None)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        cut = [_cut(context, continuation, self.llm.ctx_size) for _, context, continuation in requests]
        found: list[tuple[float, bool]] = []
        for begin, end in self._batches(len(cut)):
            scores = self.llm.score_ids([ids for ids, _ in cut[begin:end]], [start for _, start in cut[begin:end]])
            found += [(score.total, score.greedy) for score in scores]
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, each token after as many before it as fit."""
        totals = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pieces = [(None, *make_disjoint_window(window)) for window in windows]
            totals.append(sum(value for value, _ in self._loglikelihood_tokens(pieces)))
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop text. Requests of one setting go together."""
        texts = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        for numbers in groups.values():
            params = sampling(requests[numbers[0]].args[1])
            room = self.llm.ctx_size - (params.max_tokens or 0)
            if room < 1:
                raise UsageError(f"{params.max_tokens} tokens to write do not fit the context of {self.llm.ctx_size}")
            prompts = [self.tok_encode(requests[number].args[0])[-room:] for number in numbers]
            for begin, end in self._batches(len(numbers)):
                done = self.llm.complete(prompts[begin:end], params)
                for number, completion in zip(numbers[begin:end], done, strict=True):
                    texts[number] = completion.choices[0].text
        return texts

    def _batches(self, count: int) -> Iterator[tuple[int, int]]:
        for begin in range(0, count, self.batch_size):
            yield begin, min(begin + self.batch_size, count)


def sampling(given: Mapping[str, Any]) -> SamplingParams:
    """lm-eval's generation arguments in our words. UsageError for one that means nothing here."""
    if unknown := sorted(set(given) - _TAKEN):
        raise UsageError(f"generation arguments {', '.join(unknown)} are not taken; use {', '.join(sorted(_TAKEN))}")
    until = given.get("until") or []
    most = next((given[name] for name in _LENGTHS if given.get(name) is not None), MAX_GEN_TOKS)
    temperature = float(given.get("temperature") or 0.0) if given.get("do_sample", True) else 0.0
    if given.get("do_sample") and given.get("temperature") is None:
        temperature = 1.0
    drawn = {name: given[name] for name in ("top_p", "top_k", "min_p") if given.get(name) is not None and temperature}
    always = {name: given[name] for name in ("repetition_penalty", "seed") if given.get(name) is not None}
    return SamplingParams(
        temperature=temperature,
        max_tokens=int(most),
        stop=(until,) if isinstance(until, str) else tuple(until),
        **drawn,
        **always,
    )


def _cut(context: Sequence[int], continuation: Sequence[int], most: int) -> tuple[list[int], int]:
    """Both together without what is too much at the beginning, and where the continuation begins."""
    ids = [*context, *continuation][-most:]
    return ids, max(1, len(ids) - len(continuation))
