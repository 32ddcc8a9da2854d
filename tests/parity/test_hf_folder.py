"""Hugging Face folders against transformers, both ways, whole and in shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tokenmill
from fakes.tiny_llm import tiny_folder
from tokenmill.cli.app import main
from tokenmill.formats import HFFolder, write_hf_folder
from tokenmill.nn.context import Packed

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


def test_shaped_models_compute_the_same_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models merged, narrowed (fewer heads than the hidden size has room for), exported: the same scores."""
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))
    tiny_folder(tmp_path / "a")
    rows = [json.dumps({"text": f"the cat sat on the mat and the dog sat on log {i} " * 3}) for i in range(40)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))
    merged, narrow, out = (str(tmp_path / name) for name in ("merged", "narrow", "out"))
    data = ["--data", str(tmp_path / "texts.jsonl"), "--seq-len", "64"]
    assert main(["merge", str(tmp_path / "a"), str(tmp_path / "a"), "--method", "slerp", "--out", merged]) == 0
    assert (
        main(["prune", merged, "--method", "width", "--kv-heads", "1", "--mlp-size", "64", *data, "--out", narrow]) == 0
    )
    assert main(["export", "hf", narrow, "--out", out]) == 0
    tokens = torch.tensor([[5, 1, 17, 60, 2, 33, 9, 88]])
    ours = tokenmill.load_model(out).decoder(tokens[0], Packed([8]))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert theirs.generation_config.eos_token_id == [0, 2]
    torch.testing.assert_close(ours, theirs(tokens).logits[0], rtol=1e-4, atol=1e-4)
    words = "the cat sat on the mat"
    assert transformers.AutoTokenizer.from_pretrained(out)(words).input_ids == tokenmill.load_tokenizer(out).encode(
        words
    )
