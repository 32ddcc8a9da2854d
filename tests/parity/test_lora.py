"""LoRA adapters that PEFT wrote, folded into our weights: logits equal PEFT's own; what we cannot do is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from tokenmill.adapt import load_adapter, merge_adapter
from tokenmill.core.errors import ConfigError, FormatError
from tokenmill.formats import Typed, open_tensors, write_gguf
from tokenmill.models import load_model
from tokenmill.nn.context import Packed

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "phi3": ["qkv_proj", "gate_up_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}


def make(name: str, folder: Path, **special: Any) -> tuple[Path, torch.Tensor]:
    """A base folder with PEFT's adapter beside it, random on both sides; returns PEFT's logits."""
    base = tiny.write(tiny.FAMILIES[name], folder / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS[name], task_type="CAUSAL_LM", **special)
    model = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(7)
    for key, value in model.named_parameters():
        if "lora_" in key:
            value.data = torch.randn(value.shape, generator=generator) * 0.2
    model.save_pretrained(folder / "adapter")
    with torch.inference_mode():
        return base, model.eval()(torch.tensor([tiny.PROMPTS[0]])).logits[0]


def fold(model: Any, path: Path) -> int:
    """Load and merge; how many modules of the hub's the adapter changes."""
    count = load_adapter(model, path)
    merge_adapter(model)
    return count


def our_logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.decoder(torch.tensor(tiny.PROMPTS[0]), Packed([len(tiny.PROMPTS[0])]))


@pytest.mark.parametrize("special", [{}, {"use_rslora": True}, {"rank_pattern": {"layers.1.self_attn.q_proj": 2}}])
@pytest.mark.parametrize("name", list(TARGETS))
def test_folded_equals_peft(name: str, special: dict[str, Any], tmp_path: Path) -> None:
    base, expected = make(name, tmp_path, **special)
    model = load_model(base, dtype="float32")
    plain = our_logits(model)
    assert fold(model, tmp_path / "adapter") == len(TARGETS[name]) * 3 + (3 if name == "gpt2" else 0)
    folded = our_logits(model)
    assert (folded - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (folded - plain).abs().max() > 0.01 * expected.abs().max()  # the adapter does something


def test_gguf_adapter_on_a_gguf_style_model(tmp_path: Path) -> None:
    """llama.cpp's adapters name GGUF tensors and have query and key rows reordered; the result must be PEFT's."""
    base, expected = make("llama", tmp_path)
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    names |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    tensors = []
    source = open_tensors(tmp_path / "adapter" / "adapter_model.safetensors")
    head_dim = 12
    for name in source.infos():
        _, _, _, _, layer, _, module, side, _ = name.split(".")
        tensor = source.load(name).clone()
        if side == "lora_B" and module in ("q_proj", "k_proj"):
            tensor = tensor.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2).contiguous()
        tensors.append((f"blk.{layer}.{names[module]}.weight.{side.lower()}", tensor, "F32"))
    path = tmp_path / "adapter.gguf"
    write_gguf(
        path,
        {
            "general.architecture": "llama",
            "general.type": "adapter",
            "adapter.type": "lora",
            "adapter.lora.alpha": Typed(6.0, "float32"),
        },
        tensors,
    )
    model = load_model(base, dtype="float32")
    assert fold(model, path) == 21
    assert (our_logits(model) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("peft_type", "VERA"),
        ("init_lora_weights", "pissa"),
        ("an_option_of_tomorrow", {"on": True}),
    ],
)
def test_what_is_not_plain_lora_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    base, _ = make("llama", tmp_path)
    config_file = tmp_path / "adapter" / "adapter_config.json"
    config_file.write_text(json.dumps({**json.loads(config_file.read_text()), key: value}))
    with pytest.raises((ConfigError, FormatError), match=key):
        fold(load_model(base, dtype="float32"), tmp_path / "adapter")


def test_a_rank_that_is_not_the_tensors_is_refused(tmp_path: Path) -> None:
    """The scale is alpha / r: with another r every weight would be wrong, and nothing would show it."""
    base, _ = make("llama", tmp_path)
    config_file = tmp_path / "adapter" / "adapter_config.json"
    config_file.write_text(json.dumps({**json.loads(config_file.read_text()), "r": 8}))
    with pytest.raises(FormatError, match="has rank 4, its configuration says 8"):
        fold(load_model(base, dtype="float32"), tmp_path / "adapter")


def test_an_adapter_of_another_model_changes_nothing(tmp_path: Path) -> None:
    make("phi3", tmp_path / "phi3")
    base = tiny.write(tiny.FAMILIES["llama"], tmp_path / "llama")
    model = load_model(base, dtype="float32")
    before = our_logits(model)
    with pytest.raises(FormatError, match="qkv_proj"):
        fold(model, tmp_path / "phi3" / "adapter")
    assert torch.equal(our_logits(model), before)


@pytest.mark.parametrize("shape", [(), (4,), (0, 48), (2, 4, 48)])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "adapter.gguf"
    tensors = [(f"blk.0.attn_q.weight.lora_{side}", torch.zeros(shape), "F32") for side in "ab"]
    write_gguf(path, {"general.architecture": "llama", "adapter.type": "lora", "adapter.lora.alpha": 1.0}, tensors)
    model = load_model(tiny.write(tiny.FAMILIES["llama"], tmp_path / "base"), dtype="float32")
    with pytest.raises(FormatError):
        fold(model, path)
