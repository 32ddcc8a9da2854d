"""Documents that begin alike: computed once, the same numbers and the same gradients as each on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from tokenmill.models import load_model
from tokenmill.nn import shared
from tokenmill.nn.context import Packed
from tokenmill.nn.shared import Branched, hidden_states, runs_of

DOCUMENTS = [
    [5, *range(20, 40), 7],
    [5, *range(20, 40), 8, 9, 10],
    [5, *range(20, 40)],  # nothing of its own
    [5, 20, 21, 50, 51, 52, 53],  # little in common with them
    [5, 20, 21, 50, 51, 52, 53],  # twice the same
    [90, 91],
]
RUNS = [(3, 21), (2, 7), (1, 0)]
LENGTHS = [len(document) for document in DOCUMENTS]
TOKENS_T = torch.tensor([token for document in DOCUMENTS for token in document])


def test_neighbours_that_begin_alike_are_found() -> None:
    assert runs_of(TOKENS_T.numpy(), LENGTHS) == RUNS
    assert runs_of(np.array([1, 2, 3]), [3]) == [(1, 0)]
    assert runs_of(np.arange(9), [3, 3, 3]) == [(1, 0)] * 3


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3_moe"])
def test_hidden_states_and_gradients_are_the_same(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(tiny.FAMILIES[family], tmp_path)
    model = load_model(tmp_path, dtype="float32").decoder.requires_grad_(True)
    rows: list[int] = []
    real = Branched.attend

    def counting(self: Branched, layer: int, q_THD: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(len(q_THD))
        return real(self, layer, q_THD, *rest)

    monkeypatch.setattr(Branched, "attend", counting)

    def computed(hidden_TC: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        weights_TC = torch.randn(hidden_TC.shape, generator=torch.Generator().manual_seed(0))
        (hidden_TC * weights_TC).sum().backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return hidden_TC.detach(), found

    wanted, wanted_gradients = computed(model.hidden(TOKENS_T, Packed(LENGTHS)))
    got, gradients = computed(hidden_states(model, TOKENS_T, LENGTHS))
    assert set(rows) == {len(TOKENS_T) - 2 * 21 - 7}
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == wanted_gradients.keys()
    for name, gradient in wanted_gradients.items():
        assert float((gradients[name] - gradient).abs().max()) < 1e-5 * max(1.0, float(gradient.abs().max())), name
    monkeypatch.setattr(shared, "LEAST_SAVED", 0.9)  # little to be had: the row stays as it is
    rows.clear()
    hidden_states(model, TOKENS_T, LENGTHS)
    assert not rows
