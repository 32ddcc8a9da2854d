"""Configurations as the hub has them, every key of theirs: accepted and read right; their dangerous neighbours refused.

The tiny models of the other tests say only what the mathematics needs. Real files also carry leftovers (Phi-3's trained
length without scaling, Qwen's ``use_mrope``, GPT-2's ``n_special``), and a refusal there is a model that does not run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from tokenmill.core.errors import ConfigError
from tokenmill.models import read_config
from tokenmill.nn.config import DecoderConfig, MoEConfig
from tokenmill.nn.cost import parameters
from tokenmill.nn.rope import attention_factor

CONFIGS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "hub_configs.json").read_text(encoding="utf-8")
)
# As the models' own pages count them, in millions
PARAMETERS = {
    "Llama-2-7b-hf": 6738,
    "Llama-3.1-8B": 8030,
    "Llama-3.2-1B": 1236,
    "SmolLM2-135M": 134.5,
    "Yi-6B": 6061,
    "Mistral-7B-v0.1": 7242,
    "Mistral-Nemo": 12248,
    "Qwen2.5-0.5B": 494,
    "Qwen3-0.6B": 596,
    "Qwen3-30B-A3B": 30532,
    "gemma-2-2b": 2614,
    "gemma-2-9b": 9242,
    "gemma-3-1b-it": 1000,
    "gemma-3-270m": 268,
    "Phi-3-mini-4k": 3821,
    "Phi-4-mini": 3836,
    "phi-4": 14660,
    "gpt2": 124.4,
    "gpt2-xl": 1557.6,
    "starcoder2-3b": 3030,
    "Mixtral-8x7B": 46703,
}


def read(name: str, **change: Any) -> DecoderConfig:
    return read_config({**CONFIGS[name], **change}, name)[1]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_real_configuration_is_accepted(name: str) -> None:
    config = read(name)
    if name in PARAMETERS:
        assert parameters(config) / 1e6 == pytest.approx(PARAMETERS[name], rel=1e-3)


def test_what_sets_the_families_apart_is_read() -> None:
    windows = {name: [layer.attention.window for layer in read(name).layers] for name in CONFIGS}
    assert set(windows["Mistral-7B-v0.1"]) == {4096}
    assert set(windows["Mistral-7B-v0.3"]) == set(windows["Qwen2.5-0.5B"]) == {None}
    assert set(windows["Phi-3-mini-4k"]) == {2047}
    assert windows["gemma-2-2b"][:3] == [4096, None, 4096]
    assert windows["gemma-3-1b-it"][:7] == windows["gemma-3-270m"][:7] == [512] * 5 + [None, 512]
    ropes = [layer.attention.rope for layer in read("gemma-3-1b-it").layers]
    assert [rope.theta for rope in ropes[4:7] if rope] == [1e4, 1e6, 1e4]
    mini = read("Phi-4-mini").layers[0].attention.rope
    assert mini is not None
    assert mini.dim == 96
    assert attention_factor(mini.scaling) == pytest.approx(1.190238)
    assert read("granite-3.0-2b").layers[0].attention.scale == 0.015625
    experts = read("Qwen3-30B-A3B").layers[0].mlp
    assert isinstance(experts, MoEConfig)
    assert (experts.num_experts, experts.experts_per_token, experts.normalize_weights) == (128, 8, True)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("Qwen2.5-0.5B", "use_mrope", True),
        ("gemma-2-9b", "sliding_window_size", 1024),
        ("Phi-4-mini", "lm_head_bias", True),
        ("Phi-4-mini", "full_attn_mod", 2),
        ("Phi-4-mini", "interpolate_factor", 4),
        ("Mixtral-8x7B", "num_experts_per_tok", 9),
        ("Llama-3.1-8B", "add_cross_attention", True),
        ("Llama-3.1-8B", "pretraining_tq", 2),
    ],
)
def test_the_same_key_with_other_mathematics_is_refused(name: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        read(name, **{key: value})


DAMAGED = ["x", -1, 0, 0.5, 1e400, float("nan"), [], {}, ["x"], {"a": 1}, True, None, 10**30]


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gemma3", "phi3", "granite", "gpt2"])
def test_a_damaged_value_is_an_error_for_the_person(name: str) -> None:
    """Whatever stands in a key: it is read, or refused with ConfigError; never another exception."""
    config = tiny.FAMILIES[name]
    ropes = [
        {"rope_scaling": tiny.ROPES[rope]["rope_scaling"] | {key: value}}
        for rope in tiny.ROPES
        if rope != "default"
        for key in [*tiny.ROPES[rope]["rope_scaling"], "rope_theta", "partial_rotary_factor"]
        for value in DAMAGED
    ]
    keys = [*config, "layer_types", "rope_scaling", "rope_parameters", "original_max_position_embeddings"]
    for change in [*({key: value} for key in keys for value in DAMAGED), *ropes]:
        try:
            read_config({**config, **change}, name)
        except ConfigError:
            pass
        except Exception as error:
            raise AssertionError(f"{change} gave {error!r}") from error


@pytest.mark.parametrize("kind", ["linear", "dynamic-short", "yarn", "llama3", "longrope"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "2"])
def test_a_scaling_that_is_no_number_is_refused(kind: str, value: Any) -> None:
    scaling = tiny.ROPES[kind]["rope_scaling"] | {"factor": value}
    with pytest.raises(ConfigError, match="factor"):
        read_config({**tiny.FAMILIES["llama"], "rope_scaling": scaling}, "config.json")
