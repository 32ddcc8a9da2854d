"""Filters and penalties against transformers' logits processors: the same tokens survive, equally likely."""

from __future__ import annotations

import itertools

import pytest
import torch

from tokenmill.ops.sampling import apply_penalties, candidates, likeliest

transformers = pytest.importorskip("transformers")


def theirs(logits: torch.Tensor, **asked: float) -> torch.Tensor:
    """Probabilities over the vocabulary, in transformers' order: temperature, top-k, top-p, min-p, typical-p."""
    from transformers import generation as g

    made = [g.TemperatureLogitsWarper(asked["temperature"])]
    if asked["top_k"]:
        made.append(g.TopKLogitsWarper(int(asked["top_k"])))
    if asked["top_p"] < 1:
        made.append(g.TopPLogitsWarper(asked["top_p"]))
    if asked["min_p"]:
        made.append(g.MinPLogitsWarper(asked["min_p"]))
    if asked["typical_p"] < 1:
        made.append(g.TypicalLogitsWarper(asked["typical_p"]))
    scores = logits[None]
    for warper in made:
        scores = warper(None, scores)
    return torch.softmax(scores[0], dim=-1)


def ours(logits: torch.Tensor, **asked: float) -> torch.Tensor:
    values, ids = candidates(logits, **{**asked, "top_k": int(asked["top_k"])})
    p = torch.zeros_like(logits)
    kept = torch.softmax(values, dim=-1)
    return kept if ids is None else p.index_copy(0, ids, kept)


GRID = list(itertools.product([0.3, 1.0, 1.7], [0, 1, 12], [0.5, 0.95, 1.0], [0.0, 0.08], [0.4, 0.9, 1.0]))


@pytest.mark.parametrize("seed", range(4))
def test_filters_equal_transformers(seed: int) -> None:
    logits = torch.randn(80, generator=torch.Generator().manual_seed(seed)) * 3
    for temperature, top_k, top_p, min_p, typical_p in GRID:
        asked = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p}
        torch.testing.assert_close(ours(logits, **asked), theirs(logits, **asked), msg=str(asked))


def test_repetition_penalty_equals_transformers() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    prompt, output = [3, 4, 4, 9], [9, 20, 21]
    processor = transformers.RepetitionPenaltyLogitsProcessor(1.3)
    expected = processor(torch.tensor([[*prompt, *output]]), logits[None].clone())[0]
    torch.testing.assert_close(apply_penalties(logits, prompt, output, repetition=1.3), expected)
    windowed = processor(torch.tensor([[20, 21]]), logits[None].clone())[0]
    torch.testing.assert_close(apply_penalties(logits, prompt, output, repetition=1.3, last_n=2), windowed)


def test_presence_and_frequency_are_openais_formula() -> None:
    logits = torch.zeros(6)
    out = apply_penalties(logits, [5], [1, 1, 2], presence=0.5, frequency=0.25)
    assert out.tolist() == [0.0, -1.0, -0.75, 0.0, 0.0, 0.0]  # the prompt's token 5 is not counted


def test_the_likeliest_is_torchs_argmax_the_first_of_equals_and_a_nan_before_all() -> None:
    draw = torch.Generator().manual_seed(2)
    for size in (1, 17, 49152):
        logits = torch.randint(-5, 5, (size,), generator=draw).float()
        assert likeliest(logits) == int((logits == logits.max()).nonzero()[0]) == int(logits.argmax())
    logits[[7, 30]] = float("nan")
    assert likeliest(logits) == 7
    assert likeliest(torch.arange(8.0)[::2]) == 3
