"""Texts that a model writes while it is trained, so that a person sees what the loss does not say.

Made by the plain generation loop on the very weights that are trained. ``train`` may not import the engine, so
`sampler` gives it a callable. Prompts are the recipe's, else the beginnings of held-out rows: a conversation up to
where the assistant speaks, the first words of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import nn

from tokenmill.adapt import virtual_ids
from tokenmill.config.recipe import COMPARING
from tokenmill.core.errors import TokenmillError
from tokenmill.data.batch import NO_LABEL
from tokenmill.engine.generate import generate
from tokenmill.engine.request import Request
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.nn.decoder import Decoder
from tokenmill.nn.scorer import Scorer
from tokenmill.text.tokenizer import Tokenizer
from tokenmill.train.watch_protocol import Sample

if TYPE_CHECKING:
    from tokenmill.data.dataset import Dataset
    from tokenmill.models.load import Model
    from tokenmill.train.plan import Plan

ROWS = 3
"""Held-out rows that are continued when the recipe names no prompts."""
WORDS = 12
"""Tokens of a plain text that are given away."""
TEMPERATURE = 0.7
"""Greedy decoding of a young model repeats itself for ever."""


def sampler(
    network: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    chat: bool,
    max_tokens: int,
    seed: int = 0,
    held_out: Dataset | None = None,
) -> Callable[[int], Iterable[Sample]] | None:
    """What the loop calls with its step to get samples; None where the model does not write (an encoder, a reward
    model), or no prompt is found. ``chat``: prompts are what a user says, rendered with the model's own template."""
    if not isinstance(network, Decoder) or isinstance(network, Scorer) or max_tokens == 0:
        return None
    if prompts:
        asked = [(prompt, _ids(tokenizer, prompt, chat)) for prompt in prompts]
    else:
        asked = [(tokenizer.decode(ids), ids) for ids in beginnings(held_out)]
    virtual = virtual_ids(network)  # a learned prompt or prefix stands before every prompt
    room = network.config.max_position - max_tokens - len(virtual)
    asked = [(text, ids) for text, ids in asked if 0 < len(ids) < room]
    if not asked:
        return None

    def samples(step: int) -> Iterator[Sample]:
        params = SamplingParams(temperature=TEMPERATURE, max_tokens=max_tokens)
        requests = [
            Request([*virtual, *ids], params, seed=seed + n, eos_token_ids=tokenizer.eos_token_ids, index=n)
            for n, (_, ids) in enumerate(asked)
        ]
        training = network.training
        network.eval()
        try:
            for _ in generate(network, requests):
                pass
        finally:
            network.train(training)
        for request, (text, _) in zip(requests, asked, strict=True):
            if isinstance(request.error, TokenmillError):  # scores that are no numbers: the loss says so too
                yield Sample(step, text, f"[{request.error}]")
            else:
                yield Sample(step, text, tokenizer.decode(request.output))

    return samples


def beginnings(held_out: Dataset | None) -> Iterator[list[int]]:
    """The prompts of the first held-out rows: up to the first token that is learned, at least WORDS of a text."""
    for index in range(min(ROWS, 0 if held_out is None else len(held_out))):
        assert held_out is not None
        sample = held_out[index]
        learned = [at for at, label in enumerate(sample.labels.tolist()) if label != NO_LABEL]
        if learned:
            end = learned[0] + 1 if learned[0] > 1 else min(WORDS, len(sample) // 2)
            yield sample.tokens[:end].tolist()


def _ids(tokenizer: Tokenizer, prompt: str, chat: bool) -> list[int]:
    if chat and tokenizer.chat_template is not None:
        return tokenizer.encode_chat([{"role": "user", "content": prompt}])
    return tokenizer.encode(prompt)


def samples_of(model: Model, plan: Plan) -> Callable[[int], Iterable[Sample]] | None:
    """What a plan asks for, as ``train.run`` takes it."""
    recipe = plan.recipe
    return sampler(
        model.network,
        plan.tokenizer,
        recipe.sample_prompts,
        chat=recipe.objective in ("sft", "distill", *COMPARING),
        max_tokens=recipe.sample_tokens,
        seed=recipe.seed,
        held_out=plan.splits.eval,
    )
