"""Hugging Face folders against transformers, both ways, whole and in shards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tokenmill.formats import HFFolder, write_hf_folder

transformers = pytest.importorskip("transformers")


def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 10_000])
def test_transformers_loads_what_we_write(tmp_path: Path, max_shard_bytes: int) -> None:
    model = tiny()
    write_hf_folder(
        tmp_path,
        model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]},
        model.state_dict().items(),
        generation_config=model.generation_config.to_dict(),
        max_shard_bytes=max_shard_bytes,
    )
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_bytes == 10_000)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


@pytest.mark.parametrize("max_shard_size", ["5GB", "10KB"])
def test_we_load_what_transformers_writes(tmp_path: Path, max_shard_size: str) -> None:
    model = tiny()
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    folder = HFFolder(tmp_path)
    assert folder.config["model_type"] == "llama"
    assert folder.generation_config
    assert set(folder.infos()) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(folder.load(name), tensor)
