"""Configurations and weights that are not understood are refused by name, all problems at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from tokenmill.core.errors import ConfigError, FormatError
from tokenmill.formats.hf_folder import write_hf_folder
from tokenmill.models import load_model, read_config


def refused(name: str, **change: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config({**tiny.FAMILIES[name], **change}, "config.json")
    return str(caught.value)


def test_a_key_that_is_not_understood_is_refused_by_name() -> None:
    assert "'attention_multiplyer' = 2 is not understood" in refused("granite", attention_multiplyer=2)
    assert "did you mean 'attention_multiplier'" in refused("granite", attention_multiplyer=2)
    assert "quantization_config" in refused("llama", quantization_config={"quant_method": "gptq"})


def test_all_problems_come_in_one_message() -> None:
    message = refused("llama", hidden_size=-1, num_key_value_heads=3, surprise=1, mlp_bias="yes")
    for word in ("hidden_size", "key/value heads", "surprise", "mlp_bias"):
        assert word in message


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("llama", {"rope_scaling": {"type": "mrope", "factor": 2}}, "mrope"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2, "spread": 1}}, "spread"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": "two"}}, "factor"),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1]}}, "short_factor"),
        ("llama", {"hidden_act": "sine"}, "sine"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers"),
        ("llama", {"model_type": "lama"}, "did you mean 'llama'"),
        ("llama", {"head_dim": 7}, "7 of 7"),
        ("qwen2", {"layer_types": ["sliding_attention", "chunked_attention", "full_attention"]}, "chunked_attention"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ],
)
def test_mathematics_we_do_not_do_is_refused(name: str, change: dict[str, Any], word: str) -> None:
    assert word in refused(name, **change)


def test_missing_keys_are_named() -> None:
    config = {key: value for key, value in tiny.FAMILIES["llama"].items() if key != "hidden_size"}
    with pytest.raises(ConfigError, match="'hidden_size' is missing"):
        read_config(config, "config.json")


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    config = tiny.FAMILIES["llama"]
    tensors = dict(tiny.weights(config))
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 3)
    tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(3, 3)
    del tensors["model.norm.weight"]
    write_hf_folder(tmp_path, config, tensors.items())
    with pytest.raises(FormatError) as caught:
        load_model(tmp_path)
    message = str(caught.value)
    assert "model.layers.0.mlp.up_proj.weight has shape [3, 3], the configuration says [80, 48]" in message
    assert "model.layers.9.mlp.up_proj.weight is not understood" in message
    assert "model.norm.weight is missing" in message


def test_a_model_in_its_own_dtype_is_not_copied(tmp_path: Path) -> None:
    """Weights stay views of the mapped file: loading takes no memory of its own."""
    folder = tiny.write(tiny.FAMILIES["llama"], tmp_path)
    one, two = load_model(folder, dtype="float32"), load_model(folder, dtype="float32")
    mapped = (folder / "model.safetensors").stat().st_size
    span = {p.untyped_storage().nbytes() for p in one.decoder.parameters()}
    assert max(span) <= mapped
    assert torch.equal(one.decoder.embed.weight, two.decoder.embed.weight)


def test_a_base_model_without_prefix_loads(tmp_path: Path) -> None:
    """The hub's gpt2 calls its embedding wte, not transformer.wte."""
    config = tiny.FAMILIES["gpt2"]
    bare = ((name.removeprefix("transformer."), tensor) for name, tensor in tiny.weights(config))
    write_hf_folder(tmp_path / "bare", config, bare)
    full = load_model(tiny.write(config, tmp_path / "full"), dtype="float32")
    loaded = load_model(tmp_path / "bare", dtype="float32")
    for (name, a), (_, b) in zip(full.decoder.named_parameters(), loaded.decoder.named_parameters(), strict=True):
        assert torch.equal(a, b), name
