"""Masking and span corruption: shares, determinism, nothing lost, sentinels in order."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.config.parts import CorruptConfig
from tokenmill.core.errors import ConfigError
from tokenmill.data.batch import NO_LABEL, Sample
from tokenmill.data.corrupt import CorruptSpans, MaskTokens, random_of, spans
from tokenmill.text.tokenizer import Tokenizer

SPECIAL = ["<pad>", "</s>", "<mask>", *(f"<extra_id_{n}>" for n in range(20))]


def tokenizer(specials: list[str] = SPECIAL) -> Tokenizer:
    """Words w0 … w99, every second of which goes on with the word before (WordPiece)."""
    words = [f"##w{n}" if n % 2 else f"w{n}" for n in range(100)]
    vocabulary = {token: number for number, token in enumerate([*specials, *words])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="w0"))
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in specials])
    names = {"pad_token": "<pad>", "eos_token": "</s>"} | ({"mask_token": "<mask>"} if "<mask>" in specials else {})
    return Tokenizer(backend, origin="test", names=names)


def sample(length: int, index: int = 0, epoch: int = 0) -> Sample:
    tokens = np.random.default_rng(index).integers(len(SPECIAL), len(SPECIAL) + 100, length)
    return Sample(index, tokens, np.full(length, NO_LABEL), epoch)


def test_shares_of_masking() -> None:
    mask = MaskTokens(CorruptConfig(), tokenizer())
    before = sample(20_000)
    after = mask.spoil(before, random_of(3, before))
    chosen = after.labels != NO_LABEL
    assert chosen.sum() == 3000
    assert (after.labels[chosen] == before.tokens[chosen]).all()
    assert (after.tokens[~chosen] == before.tokens[~chosen]).all()
    masked = (after.tokens == 2).sum()
    unchanged = (after.tokens[chosen] == before.tokens[chosen]).sum()
    assert abs(masked / 3000 - 0.8) < 0.03
    assert abs(unchanged / 3000 - 0.1 - 0.001) < 0.03
    drawn = after.tokens[chosen & (after.tokens != before.tokens) & (after.tokens != 2)]
    assert drawn.min() >= len(SPECIAL)  # never a control token


def test_control_tokens_are_never_chosen_and_short_texts_have_a_label() -> None:
    mask = MaskTokens(CorruptConfig(), tokenizer())
    short = Sample(5, np.array([0, 30, 1]), np.full(3, NO_LABEL))
    assert mask.spoil(short, random_of(0, short)).labels.tolist() == [NO_LABEL, 30, NO_LABEL]
    empty = Sample(5, np.array([0, 1]), np.full(2, NO_LABEL))
    assert (mask.spoil(empty, random_of(0, empty)).labels == NO_LABEL).all()


def test_whole_words_go_together() -> None:
    mask = MaskTokens(CorruptConfig(whole_words=True), tokenizer())
    before = sample(4000)
    chosen = mask.spoil(before, random_of(3, before)).labels != NO_LABEL
    goes_on = (before.tokens - len(SPECIAL)) % 2 == 1
    for place in range(1, 4000):
        if goes_on[place]:
            assert chosen[place] == chosen[place - 1]
    assert 0.13 < chosen.mean() <= 0.15


def test_the_same_sample_is_spoiled_the_same_wherever_it_lies() -> None:
    """The batch, its neighbours and the process make no difference; seed, epoch and sample do."""
    for collate in (MaskTokens(CorruptConfig(), tokenizer()), CorruptSpans(CorruptConfig(), tokenizer())):
        first, second = sample(60, 1), sample(50, 2)
        both, alone = collate([first, second], 7), collate([second], 7)

        def tokens(batch: object) -> list[int]:
            part = getattr(batch, "source", batch)
            return part.tokens_T.split(part.lengths)[-1].tolist()  # type: ignore[attr-defined]

        assert tokens(both) == tokens(alone)
        assert tokens(collate([second], 8)) != tokens(alone)
        assert tokens(collate([sample(50, 2, epoch=1)], 7)) != tokens(alone)


@settings(max_examples=200, deadline=None)
@given(length=st.integers(0, 300), share=st.floats(0.05, 0.9), mean=st.floats(1, 10), most=st.integers(1, 20))
def test_spans_are_as_many_and_as_long_as_asked(length: int, share: float, mean: float, most: int) -> None:
    lost = spans(length, share, mean, most, np.random.default_rng(length))
    assert len(lost) == length
    if length < 2:
        assert not lost.any()
        return
    assert lost.sum() == min(max(round(length * share), 1), length - 1)
    assert not lost[0]
    assert lost[-1]
    count = (np.diff(lost.astype(int)) == 1).sum()
    assert 1 <= count <= most


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 120), index=st.integers(0, 1000))
def test_source_and_target_hold_the_whole_text(length: int, index: int) -> None:
    corrupt = CorruptSpans(CorruptConfig(share=0.3), tokenizer())
    before = sample(length, index)
    source, target = corrupt.spoil(before, random_of(1, before))
    assert source.tokens[-1] == 1 == target.labels[-1]
    assert target.tokens[0] == 0
    assert (target.tokens[1:] == target.labels[:-1]).all()
    assert (source.labels == NO_LABEL).all()
    stretches: dict[int, list[int]] = {}
    for token in target.labels[:-1].tolist():
        if 3 <= token < len(SPECIAL):
            stretches[token] = []
        else:
            list(stretches.values())[-1].append(token)
    assert list(stretches) == sorted(stretches)  # sentinels in order, from the first
    assert not stretches or min(stretches) == 3
    restored: list[int] = []
    for token in source.tokens[:-1].tolist():
        restored += stretches.pop(token) if token in stretches else [token]
    assert restored == before.tokens.tolist()
    assert not stretches


def test_what_a_tokenizer_lacks_is_said() -> None:
    bare = tokenizer(["<pad>", "</s>"])
    with pytest.raises(ConfigError, match="mask token"):
        MaskTokens(CorruptConfig(), bare)
    with pytest.raises(ConfigError, match="extra_id_0"):
        CorruptSpans(CorruptConfig(), bare)
