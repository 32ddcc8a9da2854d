"""Samples while training: written by the weights that are trained, from the right beginnings, changing nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fakes.tiny_llm import VOCABULARY, tiny_folder
from tokenmill.adapt import adapt
from tokenmill.config.parts import AdapterConfig
from tokenmill.data.batch import NO_LABEL
from tokenmill.data.batch import Sample as Document
from tokenmill.evals import samples
from tokenmill.evals.samples import WORDS, beginnings, sampler
from tokenmill.models import load_model, load_tokenizer
from tokenmill.nn.context import Packed
from tokenmill.nn.decoder import Decoder
from tokenmill.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Tokenizer]:
    folder = tiny_folder(tmp_path_factory.mktemp("tiny"))
    return load_model(folder).decoder, load_tokenizer(folder)


def document(tokens: list[int], learned_from: int) -> Document:
    labels = [*tokens[1:], 2]
    masked = [NO_LABEL if at < learned_from else label for at, label in enumerate(labels)]
    return Document(0, np.array(tokens), np.array(masked))


def test_samples_continue_prompts_and_repeat_with_the_seed(tiny_model: tuple[Decoder, Tokenizer]) -> None:
    model, tokenizer = tiny_model
    make = sampler(model, tokenizer, ["the cat", "hello"], chat=False, max_tokens=8, seed=3)
    assert make is not None
    first, second = list(make(5)), list(make(5))
    assert first == second
    assert [(sample.step, sample.prompt) for sample in first] == [(5, "the cat"), (5, "hello")]
    assert all(sample.text for sample in first)


def test_sampling_leaves_training_as_it_was(tiny_model: tuple[Decoder, Tokenizer]) -> None:
    model, tokenizer = tiny_model
    make = sampler(model, tokenizer, ["a"], chat=True, max_tokens=3)
    assert make is not None
    model.train().requires_grad_(True)
    state = torch.get_rng_state()
    list(make(1))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    tokens = torch.tensor([5, 6, 7])
    model(tokens, Packed([3], tokens.device)).sum().backward()  # nothing that inference made stands in the way
    assert model.embed.weight.grad is not None


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_a_learned_beginning_stands_before_every_prompt(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does in training: its virtual tokens are given to whoever fills a cache."""
    loaded = load_model(tiny_folder(tmp_path))
    adapt(loaded, AdapterConfig(kind=kind, virtual_tokens=3), seed=0)
    seen: list[list[int]] = []
    monkeypatch.setattr(samples, "generate", lambda _, asked: (seen.append(one.prompt) for one in asked))
    make = sampler(loaded.decoder, load_tokenizer(tmp_path), ["the cat"], chat=False, max_tokens=4)
    assert make is not None
    list(make(1))
    assert seen == [[VOCABULARY, VOCABULARY + 1, VOCABULARY + 2, *load_tokenizer(tmp_path).encode("the cat")]]


def test_a_conversation_is_given_up_to_where_the_assistant_speaks() -> None:
    held_out: Any = [document(list(range(10, 40)), learned_from=7), document(list(range(30)), learned_from=0)]
    assert list(beginnings(held_out)) == [list(range(10, 18)), list(range(WORDS))]


def test_what_cannot_write_gives_no_samples(tiny_model: tuple[Decoder, Tokenizer]) -> None:
    model, tokenizer = tiny_model
    assert sampler(nn.Linear(1, 1), tokenizer, ["a"], chat=False, max_tokens=3) is None
    assert sampler(model, tokenizer, ["a"], chat=False, max_tokens=0) is None
    assert sampler(model, tokenizer, [], chat=False, max_tokens=3) is None
    assert sampler(model, tokenizer, ["a" * 5000], chat=False, max_tokens=3) is None


def test_scores_that_are_no_numbers_are_said(tiny_model: tuple[Decoder, Tokenizer]) -> None:
    model, tokenizer = tiny_model
    make = sampler(model, tokenizer, ["the cat"], chat=False, max_tokens=3)
    assert make is not None
    kept = model.norm.weight.data
    model.norm.weight.data = torch.full_like(kept, float("nan"))
    try:
        (sample,) = make(1)
    finally:
        model.norm.weight.data = kept
    assert sample.text.startswith("[")


def test_chat_prompts_go_through_the_template(tiny_model: tuple[Decoder, Tokenizer]) -> None:
    model, tokenizer = tiny_model
    seen: list[str] = []
    spy: Any = SimpleNamespace(
        chat_template=tokenizer.chat_template,
        eos_token_ids=tokenizer.eos_token_ids,
        decode=tokenizer.decode,
        encode=tokenizer.encode,
        encode_chat=lambda messages: seen.append(messages[0]["content"]) or tokenizer.encode_chat(messages),
    )
    assert sampler(model, spy, ["hi"], chat=True, max_tokens=3) is not None
    assert seen == ["hi"]
