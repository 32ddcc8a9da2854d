"""The cost formulas against what is really built and cached."""

from __future__ import annotations

import pytest
import torch

import tiny
from tokenmill.models import read_config
from tokenmill.models.load import build
from tokenmill.nn import cost
from tokenmill.nn.context import Cached, SequenceCache


@pytest.mark.parametrize("name", list(tiny.FAMILIES))
def test_parameters_are_those_of_the_built_model(name: str) -> None:
    _, config = read_config(tiny.FAMILIES[name], name)
    assert cost.parameters(config) == sum(p.numel() for p in build(config).parameters())


def test_active_parameters_leave_out_idle_experts() -> None:
    _, config = read_config(tiny.FAMILIES["mixtral"], "mixtral")
    expert = 3 * 48 * 80
    assert cost.parameters(config) - cost.parameters(config, active=True) == 3 * (5 - 2) * expert


def test_cache_bytes_are_those_that_are_written() -> None:
    _, config = read_config(tiny.FAMILIES["llama"], "llama")
    cache = SequenceCache(config.num_layers)
    context = Cached([cache], [1])
    written = 0
    for layer, part in enumerate(config.layers):
        k, v = (torch.zeros(1, part.attention.num_kv_heads, part.attention.head_dim) for _ in range(2))
        written += sum(t[:1].nbytes for t in cache.extend(layer, k, v))
    context.advance()
    assert cost.kv_bytes_per_token(config, bytes_per_value=4) == written


def test_a_window_bounds_the_cache() -> None:
    _, config = read_config(tiny.FAMILIES["mistral"], "mistral")
    assert cost.kv_bytes(config, 1000) == cost.kv_bytes(config, 7) == 7 * cost.kv_bytes_per_token(config)


def test_flops_count_what_is_multiplied() -> None:
    """Against torch's own counter, for a model whose every weight meets every token."""
    from torch.utils.flop_counter import FlopCounterMode

    from tokenmill.nn.context import Packed
    from tokenmill.ops.registry import use_backend

    _, config = read_config(tiny.FAMILIES["llama-tied"], "llama")
    decoder = build(config).to_empty(device="cpu")
    length = 16
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), use_backend("reference"):
        decoder(torch.zeros(length, dtype=torch.long), Packed([length]))
    matrices = length * cost.flops_per_token(config, context=length)
    norms = 2 * length * sum(p.numel() for n, p in decoder.named_parameters() if "norm" in n)
    assert counter.get_total_flops() == matrices - norms
