"""Twenty steps of our loop beside a plain loop over transformers (and PEFT): same weights, data, order and AdamW."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from fakes.training import Documents, Recorder
from tokenmill.adapt import adapt, save_adapter
from tokenmill.config.recipe import AdapterConfig
from tokenmill.models import load_model
from tokenmill.models.load import Model
from tokenmill.train.loop import Loop, Settings
from tokenmill.train.objectives.next_token import NextToken
from tokenmill.train.optim import AdamW, groups_of
from tokenmill.train.schedules import Schedule

transformers = pytest.importorskip("transformers")

STEPS, ACCUMULATE, DECAY, CLIP = 20, 2, 0.1, 0.5
SCHEDULE = Schedule("cosine", 5e-3, STEPS, warmup=3, accumulate=ACCUMULATE)


def our_curve(model: Model, folder: Path) -> tuple[list[float], list[float]]:
    network, watcher = model.network, Recorder()
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    groups = groups_of(network, weight_decay=DECAY, lr_scales={})
    optimizer = AdamW(trained, groups, betas=(0.9, 0.95))
    settings = Settings(clip=CLIP, on_spike="off")
    Loop(
        network, NextToken(), Documents(), optimizer, SCHEDULE, folder=folder, settings=settings, watcher=watcher
    ).run()
    return watcher.losses, [step.grad_norm for step in watcher.steps]


def their_curve(model: nn.Module) -> tuple[list[float], list[float]]:
    """Every document alone, no padding, no packing: as plain as it gets."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    plain = [p for name, p in trained.items() if p.ndim < 2 or "embed" in name or "wte" in name or "wpe" in name]
    rest = [p for p in trained.values() if not any(p is other for other in plain)]
    groups: list[dict[str, Any]] = [{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": DECAY}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    model.eval()  # nothing but dropout is switched off, which GPT-2 has
    losses, norms = [], []
    batches = iter(Documents())
    for step in range(STEPS):
        documents = []
        for batch in itertools.islice(batches, ACCUMULATE):
            documents += zip(batch.tokens_T.split(batch.lengths), batch.labels_T.split(batch.lengths), strict=True)
        count = sum(int((labels != -100).sum()) for _, labels in documents)
        total = 0.0
        for tokens, labels in documents:
            logits = model(input_ids=tokens[None]).logits[0].float()
            loss = nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum") / count
            loss.backward()
            total += loss.item()
        norms.append(float(nn.utils.clip_grad_norm_(trained.values(), CLIP)))
        for group in optimizer.param_groups:
            group["lr"] = SCHEDULE.lr(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses, norms


def assert_equal_curves(ours: tuple[list[float], list[float]], theirs: tuple[list[float], list[float]]) -> None:
    assert len(ours[0]) == len(theirs[0]) == STEPS
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-3, atol=1e-4)
    assert ours[0][-1] < ours[0][0] - 0.2, "nothing was learned"


@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen3", "gemma2", "gpt2", "phi3", "mixtral"])
def test_full_fine_tuning(family: str, tmp_path: Path) -> None:
    folder = tiny.write(tiny.FAMILIES[family], tmp_path / "model")
    model = load_model(folder, dtype="float32")
    model.network.requires_grad_(True)
    how = {"attn_implementation": "eager"} if family == "gemma2" else {}  # the others drop its soft-capping
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how)
    assert_equal_curves(our_curve(model, tmp_path), their_curve(theirs))


def test_lora(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder = tiny.write(tiny.FAMILIES["llama"], tmp_path / "model")
    model = load_model(folder, dtype="float32")
    adapt(model, AdapterConfig(kind="lora", rank=4, alpha=8.0), seed=3)
    save_adapter(model, tmp_path / "adapter", base=str(folder))
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    assert_equal_curves(our_curve(model, tmp_path), their_curve(theirs))
