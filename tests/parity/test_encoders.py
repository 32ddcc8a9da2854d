"""BERT, RoBERTa and T5 against transformers, float32: both ways of conversion, packed documents, losses, adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from tokenmill import LLM
from tokenmill.adapt import adapt, load_adapter, merge_adapter, save_adapter
from tokenmill.config.parts import AdapterConfig
from tokenmill.core.errors import ConfigError
from tokenmill.data.batch import Batch, PairBatch, Sample
from tokenmill.models import Model, load_model, read_any_config
from tokenmill.nn.context import Bidirectional
from tokenmill.nn.cost import parameters
from tokenmill.nn.encoder import Encoder
from tokenmill.nn.encoder_decoder import EncoderDecoder
from tokenmill.ops.registry import use_backend
from tokenmill.train.objectives import LostSpans, MaskedTokens

transformers = pytest.importorskip("transformers")

SOURCES = tiny.PROMPTS[:3]
TARGETS = [[0, 8, 4, 30], [0, 77, 2, 2, 9, 61, 14, 33], [0, 5]]
ENCODERS, PAIRS = ["bert", "roberta"], ["t5", "t5-gated"]


def folder(name: str, path: Path) -> Path:
    return tiny.write(tiny.ENCODERS[name], path)


def hf(name: str, path: Path) -> Any:
    kind = transformers.AutoModelForMaskedLM if name in ENCODERS else transformers.AutoModelForSeq2SeqLM
    model, info = kind.from_pretrained(path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"], info["missing_keys"]
    assert not info["unexpected_keys"], info["unexpected_keys"]
    return model.eval()


def theirs(name: str, model: Any) -> list[torch.Tensor]:
    with torch.inference_mode():
        if name in ENCODERS:
            return [model(torch.tensor([s])).logits[0] for s in SOURCES]
        pairs = zip(SOURCES, TARGETS, strict=True)
        return [model(torch.tensor([s]), decoder_input_ids=torch.tensor([t])).logits[0] for s, t in pairs]


def ours(model: Model) -> list[torch.Tensor]:
    source_lengths, lengths = [len(s) for s in SOURCES], [len(t) for t in TARGETS]
    with torch.inference_mode():
        if isinstance(model.network, Encoder):
            return list(model.network(tiny.packed(SOURCES), Bidirectional(source_lengths)).split(source_lengths))
        assert isinstance(model.network, EncoderDecoder)
        logits = model.network(tiny.packed(SOURCES), source_lengths, tiny.packed(TARGETS), lengths)
        return list(logits.split(lengths))


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < 1e-4 * other.abs().max()


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("name", [*ENCODERS, *PAIRS])
def test_logits_and_both_ways_of_conversion(name: str, backend: str, tmp_path: Path) -> None:
    base = folder(name, tmp_path / "ours")
    model, reference = load_model(base, dtype="float32"), hf(name, base)
    with use_backend(full_attention=backend):
        same(ours(model), theirs(name, reference))
    reference.save_pretrained(tmp_path / "theirs")
    again = load_model(tmp_path / "theirs", dtype="float32")
    same(ours(again), theirs(name, reference))
    again.save(tmp_path / "back")
    same(theirs(name, hf(name, tmp_path / "back")), theirs(name, reference))


@pytest.mark.parametrize("name", [*ENCODERS, *PAIRS])
def test_parameters_are_counted(name: str, tmp_path: Path) -> None:
    model = load_model(folder(name, tmp_path), dtype="float32")
    assert parameters(model.network.config) == sum(p.numel() for p in model.network.parameters())


def test_long_distances_share_buckets_as_in_t5(tmp_path: Path) -> None:
    base = folder("t5", tmp_path)
    model, reference = load_model(base, dtype="float32"), hf("t5", base)
    source = [int(i) for i in torch.randint(97, (90,), generator=torch.Generator().manual_seed(1))]
    with torch.inference_mode():
        found = model.network(torch.tensor(source), [90], torch.tensor(source), [90])
        expected = reference(torch.tensor([source]), decoder_input_ids=torch.tensor([source])).logits[0]
    same([found], [expected])


def test_segments_of_bert(tmp_path: Path) -> None:
    base = folder("bert", tmp_path)
    model, reference = load_model(base, dtype="float32"), hf("bert", base)
    types = torch.tensor([0] * 6 + [1] * 7)
    with torch.inference_mode():
        found = model.network(torch.tensor(SOURCES[0]), Bidirectional([13]), types)
        expected = reference(torch.tensor([SOURCES[0]]), token_type_ids=types[None]).logits[0]
    same([found], [expected])


@pytest.mark.parametrize("name", [*ENCODERS, *PAIRS])
def test_what_needs_a_decoder_refuses_before_it_loads(name: str, tmp_path: Path) -> None:
    base = folder(name, tmp_path)
    with pytest.raises(ConfigError, match="does not continue a text token by token"):
        LLM(base)
    with pytest.raises(ConfigError, match="does not continue a text"):
        _ = load_model(base, dtype="float32").decoder


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("bert", "is_decoder", True), ("bert", "position_embedding_type", "relative_key"), ("t5", "is_gated_act", True)],
)
def test_other_mathematics_is_refused(name: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        read_any_config({**tiny.ENCODERS[name], key: value}, "tiny")


@pytest.mark.parametrize("name", [*ENCODERS, *PAIRS])
def test_lora_on_it_is_peft_s(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = folder(name, tmp_path / "base")
    model = load_model(base, dtype="float32")
    adapt(model, AdapterConfig(rank=4, alpha=6), seed=2)
    generator = torch.Generator().manual_seed(7)
    for parameter in model.network.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    save_adapter(model, tmp_path / "adapter", base=str(base))
    wrapped = peft.PeftModel.from_pretrained(hf(name, base), tmp_path / "adapter").eval()
    tuned = ours(model)
    same(tuned, theirs(name, wrapped))
    config = peft.LoraConfig(r=4, target_modules="all-linear")
    wanted = {n for n, m in peft.get_peft_model(hf(name, base), config).named_modules() if hasattr(m, "lora_A")}
    assert {n for n, m in wrapped.named_modules() if hasattr(m, "lora_A")} == wanted
    again = load_model(base, dtype="float32")
    load_adapter(again, tmp_path / "adapter")
    merge_adapter(again)
    same(ours(again), tuned)


def test_the_config_is_what_transformers_writes(tmp_path: Path) -> None:
    """Every key of a fresh configuration of theirs is understood."""
    for name in [*ENCODERS, *PAIRS]:
        hf(name, folder(name, tmp_path / name)).config.save_pretrained(tmp_path / f"{name}-config")
        read_any_config(json.loads((tmp_path / f"{name}-config" / "config.json").read_text()), name)


def test_losses_and_gradients_are_those_of_transformers(tmp_path: Path) -> None:
    """Masked tokens and lost spans on the same inputs, padded there and packed here."""
    base = folder("bert", tmp_path / "bert")
    model, reference = load_model(base, dtype="float32"), hf("bert", base)
    labels = [[-100] * len(s) for s in SOURCES]
    labels[0][3], labels[0][7], labels[2][1] = 60, 4, 5
    batch = Batch.of(
        [Sample(i, np.array(s), np.array(x)) for i, (s, x) in enumerate(zip(SOURCES, labels, strict=True))]
    )
    longest = max(map(len, SOURCES))
    padded = torch.tensor([s + [1] * (longest - len(s)) for s in SOURCES])
    wanted = torch.tensor([x + [-100] * (longest - len(x)) for x in labels])
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in SOURCES])
    model.network.requires_grad_(True)
    ours_ = MaskedTokens()(model.network, batch)
    (ours_.sum / ours_.count).backward()
    theirs_ = reference(padded, attention_mask=mask, labels=wanted).loss
    theirs_.backward()
    assert abs(float(ours_.sum) / ours_.count - float(theirs_)) < 1e-5
    gradient = reference.bert.encoder.layer[0].attention.self.query.weight.grad
    assert torch.allclose(model.network.get_submodule("layers.0.attn.q").weight.grad, gradient, atol=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_span_losses_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    base = folder(name, tmp_path)
    model, reference = load_model(base, dtype="float32"), hf(name, base)
    labels = [[*t[1:], 1] for t in TARGETS]
    source = Batch.of([Sample(i, np.array(s), np.full(len(s), -100)) for i, s in enumerate(SOURCES)])
    target = Batch.of(
        [Sample(i, np.array(t), np.array(x)) for i, (t, x) in enumerate(zip(TARGETS, labels, strict=True))]
    )
    longest, most = max(map(len, SOURCES)), max(map(len, TARGETS))
    padded = torch.tensor([s + [0] * (longest - len(s)) for s in SOURCES])
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in SOURCES])
    wanted = torch.tensor([x + [-100] * (most - len(x)) for x in labels])
    model.network.requires_grad_(True)
    ours_ = LostSpans()(model.network, PairBatch(source, target))
    (ours_.sum / ours_.count).backward()
    theirs_ = reference(padded, attention_mask=mask, labels=wanted).loss
    theirs_.backward()
    assert abs(float(ours_.sum) / ours_.count - float(theirs_)) < 1e-5
    for side in ("encoder", "decoder"):
        gradient = reference.get_submodule(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias").weight.grad
        ours_gradient = model.network.get_submodule(f"{side}.bias").weight.grad
        assert torch.allclose(ours_gradient, gradient, atol=1e-5)
