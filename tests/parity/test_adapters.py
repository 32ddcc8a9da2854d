"""Adapters of every kind against PEFT: its folders on our models, ours on its, the same logits in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from tokenmill.adapt import adapt, adapter_state, load_adapter, merge_adapter, save_adapter, switch_of
from tokenmill.adapt.places import linear_places
from tokenmill.config.parts import AdapterConfig
from tokenmill.models import Model, load_model
from tokenmill.nn.context import Packed

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

PROMPTS = tiny.PROMPTS[:3]
LORA = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"}
KINDS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(task_type="CAUSAL_LM", **LORA),
    "rslora": lambda: peft.LoraConfig(task_type="CAUSAL_LM", use_rslora=True, **LORA),
    "layers": lambda: peft.LoraConfig(
        task_type="CAUSAL_LM", layers_to_transform=[1], r=4, lora_alpha=6, target_modules=["q_proj"]
    ),
    "dora": lambda: peft.LoraConfig(task_type="CAUSAL_LM", use_dora=True, **LORA),
    "tokens": lambda: peft.LoraConfig(task_type="CAUSAL_LM", trainable_token_indices=[5, 17, 96], **LORA),
    "ia3": lambda: peft.IA3Config(task_type="CAUSAL_LM"),
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
}
OURS = {
    "lora": AdapterConfig(rank=4, alpha=6),
    "rslora": AdapterConfig(rank=4, alpha=6, rslora=True),
    "layers": AdapterConfig(rank=4, alpha=6, layers=[1], targets=["q_proj", "down_proj"]),
    "dora": AdapterConfig(kind="dora", rank=4, alpha=6),
    "tokens": AdapterConfig(rank=4, alpha=6),
    "ia3": AdapterConfig(kind="ia3"),
    "prompt": AdapterConfig(kind="prompt", virtual_tokens=5),
    "prefix": AdapterConfig(kind="prefix", virtual_tokens=5),
}
CASES = [
    *[("llama", kind) for kind in KINDS],
    *[("gpt2", kind) for kind in ("dora", "ia3", "prefix")],
    *[("phi3", "dora"), ("llama-tied", "tokens"), ("llama-tied", "prefix"), ("gemma2", "lora")],
]


def stir(parameters: Any) -> None:
    """Every adapter parameter away from where it began."""
    generator = torch.Generator().manual_seed(7)
    for parameter in parameters:
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.2


def logits(model: Model) -> list[torch.Tensor]:
    with torch.inference_mode():
        packed = model.decoder(tiny.packed(PROMPTS), Packed([len(p) for p in PROMPTS]))
    return list(packed.split([len(p) for p in PROMPTS]))


def peft_logits(model: Any, virtual: int = 0) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [model.eval()(torch.tensor([p])).logits[0][virtual:] for p in PROMPTS]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    """To the rounding of float32: gemma2 has been seen 1.02e-5 apart, by which products the library chose that day."""
    for our, their in zip(ours, theirs, strict=True):
        assert (our - their).abs().max() < 2e-5 * max(1.0, float(their.abs().max()))


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_their_adapter_on_our_model(family: str, kind: str, tmp_path: Path) -> None:
    base = tiny.write(tiny.FAMILIES[family], tmp_path / "base")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.get_peft_model(theirs, KINDS[kind]())
    stir(p for _, p in theirs.named_parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path / "adapter")
    model = load_model(base, dtype="float32")
    plain = logits(model)
    load_adapter(model, tmp_path / "adapter")
    ours, expected = logits(model), peft_logits(theirs, 5 if kind == "prompt" else 0)
    same(ours, expected)
    assert (ours[0] - plain[0]).abs().max() > 0.01  # the adapter does something
    with switch_of(model).off():
        assert torch.equal(logits(model)[0], plain[0])
    if kind not in ("prompt", "prefix"):
        merge_adapter(model)
        same(logits(model), ours)
        model.save(tmp_path / "merged")
        merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
        same(ours, peft_logits(merged))


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_our_adapter_on_their_model(family: str, kind: str, tmp_path: Path) -> None:
    base = tiny.write(tiny.FAMILIES[family], tmp_path / "base")
    model = load_model(base, dtype="float32")
    plain = logits(model)
    adapt(model, OURS[kind], seed=3, new_tokens=[5, 17, 96] if kind == "tokens" else [])
    if kind not in ("prompt", "prefix"):
        same(logits(model), plain)  # nothing changes before training
    trained = [p for p in model.network.parameters() if p.requires_grad]
    stir(trained)
    save_adapter(model, tmp_path / "adapter", base=str(base))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    ours = logits(model)
    same(ours, peft_logits(theirs, 5 if kind == "prompt" else 0))
    # transformers without PEFT's wrapper; 5.23 does not find DoRA's magnitudes, not in PEFT's own files either
    if kind not in ("prompt", "prefix", "dora"):
        plainly = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        plainly.load_adapter(str(tmp_path / "adapter"))
        same(ours, peft_logits(plainly))
    again = load_model(base, dtype="float32")
    load_adapter(again, tmp_path / "adapter", trainable=True)
    same(logits(again), ours)
    assert sum(p.numel() for p in again.network.parameters() if p.requires_grad) == sum(p.numel() for p in trained)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "starcoder2", "gemma3"])
def test_all_linear_means_what_peft_means(family: str, tmp_path: Path) -> None:
    base = tiny.write(tiny.FAMILIES[family], tmp_path / "base")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.get_peft_model(theirs, KINDS["lora"]())
    wanted = {n.removeprefix("base_model.model.") for n, m in theirs.named_modules() if hasattr(m, "lora_A")}
    model = load_model(base, dtype="float32")
    adapt(model, OURS["lora"])
    inner = {place.name for place in linear_places(model) if not place.ours[0].endswith(("head", "router"))}
    assert inner == wanted


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "prompt", "prefix"])
def test_gradients_are_those_of_peft(kind: str, tmp_path: Path) -> None:
    base = tiny.write(tiny.FAMILIES["llama"], tmp_path / "base")
    model = load_model(base, dtype="float32")
    adapt(model, OURS[kind], seed=3)
    stir(p for p in model.network.parameters() if p.requires_grad)
    save_adapter(model, tmp_path / "adapter", base=str(base))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if kind in ("prompt", "prefix"):  # PEFT loads these for inference only
        theirs = peft.get_peft_model(theirs, KINDS[kind]()).eval()
        stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")["prompt_embeddings"]
        theirs.prompt_encoder["default"].embedding.weight.data = stored
    else:
        theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter", is_trainable=True).eval()
    prompt = PROMPTS[0]
    direction = torch.randn(len(prompt), 97, generator=torch.Generator().manual_seed(1))
    (model.decoder(torch.tensor(prompt), Packed([len(prompt)])) * direction).sum().backward()
    (theirs(torch.tensor([prompt])).logits[0][-len(prompt) :] * direction).sum().backward()
    state = adapter_state(model)[0]  # the gradients by PEFT's names, in PEFT's shapes
    for parameter in model.network.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad
        if parameter.requires_grad:
            parameter.data = parameter.grad
    gradients = adapter_state(model)[0]
    found = dict(theirs.named_parameters())
    if kind in ("prompt", "prefix"):
        found = {"prompt_embeddings": theirs.prompt_encoder["default"].embedding.weight}
    checked = 0
    for name, parameter in found.items():
        if parameter.requires_grad:
            key = name.replace(".default", "")
            key = key.removesuffix(".weight") if "magnitude" in key else key
            assert (gradients[key] - parameter.grad).abs().max() < 1e-5 * max(1.0, float(parameter.grad.abs().max()))
            checked += 1
    assert checked == len(state)
