"""Quantisation-aware training: what was trained is what is written, to the last bit; gradients; what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
import tokenmill
from fakes.tiny_llm import tiny_folder
from fakes.training import Recorder
from tokenmill.adapt import adapt
from tokenmill.config.compose import compose
from tokenmill.config.parts import AdapterConfig
from tokenmill.config.qat import QatConfig
from tokenmill.core.errors import ConfigError, UsageError
from tokenmill.models import load_model
from tokenmill.models.load import Model
from tokenmill.nn.context import Packed
from tokenmill.quant.run import quantise
from tokenmill.quant.save import write_folder
from tokenmill.train.qat import as_trained, qat_settings, round_layers

WORDS = "the cat dog sat on mat log and hello there what is capital of France".split()  # noqa: SIM905
IDS = torch.tensor([5, 1, 17, 60, 2, 33, 9, 88, 41, 3, 70, 12, 11])
CASES: dict[str, tuple[str, torch.dtype, QatConfig, AdapterConfig | None]] = {
    "4 bits": ("llama", torch.bfloat16, QatConfig(group_size=32), None),
    "lora, zeros, 3 bits": (
        "llama",
        torch.float32,
        QatConfig(bits=3, group_size=32, symmetric=False, scales="float32"),
        AdapterConfig(rank=2, targets=["q_proj", "down_proj"]),
    ),
    "w8a8": ("qwen2", torch.float32, QatConfig(method="w8a8", scales="float32"), None),
    "fp8": ("llama", torch.float32, QatConfig(method="fp8", scales="float32"), None),
    "experts": ("qwen3_moe", torch.float32, QatConfig(group_size=-1, scales="float32"), None),
}


def one_step(model: Model) -> Tensor:
    """A step of plain descent, away from where the weights and a LoRA's B are at first; the logits after it."""
    trained = {name: p for name, p in model.network.named_parameters() if p.requires_grad}
    for _ in range(2 if model.adapters is not None else 1):  # A moves when B is no longer zero
        loss = model.decoder(IDS, Packed([len(IDS)])).float().logsumexp(-1).square().mean()
        gradients = torch.autograd.grad(loss, list(trained.values()))
        for parameter, gradient in zip(trained.values(), gradients, strict=True):
            parameter.data.add_(gradient.to(parameter.dtype), alpha=-0.05 / max(1e-9, float(gradient.abs().max())))
    with torch.no_grad():
        return model.decoder(IDS, Packed([len(IDS)]))


@pytest.mark.parametrize("case", CASES)
def test_the_written_folder_computes_what_was_trained_to_the_bit(case: str, tmp_path: Path) -> None:
    family, dtype, config, adapter = CASES[case]
    wide = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    model = load_model(tiny.write({**tiny.FAMILIES[family], **wide}, tmp_path / "source"), dtype=dtype)
    plain = model.decoder(IDS, Packed([len(IDS)])).detach()
    names = [name for name, _ in model.network.named_parameters()]
    if adapter is not None:
        adapt(model, adapter)
        names = [name for name, _ in model.network.named_parameters()]
    else:
        model.network.requires_grad_(True)
    assert round_layers(model, config) >= 7 * 2
    assert [name for name, _ in model.network.named_parameters()] == names  # checkpoints stay readable
    trained = one_step(model)
    assert not torch.equal(trained, plain)
    as_trained(model)
    model.save(tmp_path / "trained")
    wanted = qat_settings(config)
    again = load_model(tmp_path / "trained", dtype="float32")
    written = quantise(again, wanted, [], tmp_path / "work", source="tiny", dtype=dtype)
    if dtype == torch.float32:  # its layers hold the codes, and round their inputs
        assert torch.equal(again.decoder(IDS, Packed([len(IDS)])), trained)
    write_folder(written, tmp_path / "small", dtype)
    if wanted.inputs is None:
        read = load_model(tmp_path / "small", dtype=dtype)
        assert torch.equal(read.decoder(IDS, Packed([len(IDS)])).detach(), trained)
    unrounded = load_model(tmp_path / "trained", dtype=dtype).decoder(IDS, Packed([len(IDS)]))
    assert not torch.equal(unrounded, trained)  # the weights themselves lie between the grid's numbers


def test_gradients_are_those_of_the_rounded_weights(tmp_path: Path) -> None:
    """Straight through: what a weight learns is what its rounded number would."""
    model = load_model(tiny.write(tiny.FAMILIES["llama"], tmp_path), dtype="float32")
    config = QatConfig(bits=2, group_size=-1, scales="float32")
    model.network.requires_grad_(True)
    round_layers(model, config)
    weights = [block.mlp.up.weight for block in model.decoder.layers]  # type: ignore[union-attr]
    ours = torch.autograd.grad(model.decoder(IDS, Packed([len(IDS)])).square().mean(), weights)
    layers = [m for m in model.network.modules() if hasattr(m, "rounding")]
    for layer in layers:
        layer.weight.data = layer.rounding.weight(layer.weight).detach()  # type: ignore[operator,union-attr,assignment]
    as_trained(model)
    theirs = torch.autograd.grad(model.decoder(IDS, Packed([len(IDS)])).square().mean(), weights)
    assert all(torch.equal(one, two) for one, two in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qat")
    tiny_folder(folder / "model")
    draw = random.Random(0)
    rows = [{"text": " ".join(draw.choices(WORDS, k=draw.randint(6, 20)))} for _ in range(60)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def recipe(place: Path, runs: Path, **changes: Any) -> dict[str, Any]:
    return {
        "recipe": "test",
        "model": str(place / "model"),
        "data": {"path": str(place / "texts.jsonl"), "eval_share": 0.2, "cache": False},
        "seq_len": 64,
        "steps": 12,
        "lr": 1e-2,
        "dtype": "float32",
        "eval_every": 6,
        "save_every": 0,
        "sample_tokens": 4,
        "trackers": [],
        "out": str(runs),
        **changes,
    }


class Kept(Recorder):
    """Keeps what the trained model says of some tokens when it is last evaluated."""

    def on_eval(self, metrics: Any) -> None:
        super().on_eval(metrics)
        with torch.no_grad():
            self.logits = self.starts[0].model(IDS, Packed([len(IDS)]))


def quantised(folder: Path, config: QatConfig, work: Path) -> Tensor:
    """What the run's model says once it is quantised."""
    again = load_model(folder, dtype="float32")
    quantise(again, qat_settings(config), [], work, source="tiny", dtype=torch.float32)
    return again.decoder(IDS, Packed([len(IDS)]))


@pytest.mark.parametrize("adapter", [None, {"kind": "lora", "rank": 4}])
def test_a_run_ends_with_what_quantize_is_to_be_given(adapter: Any, place: Path, tmp_path: Path) -> None:
    config = QatConfig(bits=2, group_size=-1, scales="float32")
    kept = Kept()
    given = recipe(place, tmp_path / "runs", qat=config.model_dump(), adapter=adapter)
    result = tokenmill.train(given, watchers=[kept])
    assert result.model is not None
    assert kept.evals[-1].loss < kept.evals[0].loss - 0.05
    assert torch.equal(quantised(result.model, config, tmp_path / "work"), kept.logits)


def test_a_resumed_run_is_the_same(place: Path, tmp_path: Path) -> None:
    config = {"qat": {"bits": 3, "group_size": -1}, "save_every": 3, "steps": 6}
    whole = tokenmill.train(recipe(place, tmp_path / "whole", **config), watchers=[])

    class Kill(Recorder):
        def on_step(self, metrics: Any) -> None:
            if metrics.step == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenmill.train(recipe(place, tmp_path / "killed", **config), watchers=[Kill()])
    again = tokenmill.train(resume=tmp_path / "killed" / "latest", watchers=[])
    assert whole.model is not None
    assert again.model is not None
    one, two = ((run / "model.safetensors").read_bytes() for run in (whole.model, again.model))
    assert one == two


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"qat": {"bits": 4}, "objective": "dpo"}, "qat is for objective=next_token, sft, distill, not for dpo"),
        ({"qat": {"bits": 4}, "adapter": {"kind": "ia3"}}, "all weights or adapter.kind=lora, not ia3"),
        ({"qat": {"bits": 4}, "adapter": {"dropout": 0.1}}, "where its inputs cannot be dropped"),
        ({"qat": {"bits": 4}, "adapter": {}, "quantize": "nf4"}, "quantize=nf4 has done so already"),
        ({"qat": {"bit": 4}}, "did you mean 'qat.bits'"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compose({"model": "tiny", "data": "x.jsonl", **changes})


def test_what_quantize_could_not_do_is_refused_before_the_run(place: Path, tmp_path: Path) -> None:
    for qat, said in (
        ({"bits": 5}, "bits 5 is not possible: 4, 3, 2, 8"),
        ({"method": "w8a8", "bits": 4}, "possible: 8"),
    ):
        with pytest.raises(UsageError, match=said):
            tokenmill.train(recipe(place, tmp_path, qat=qat), watchers=[])
    assert not list(tmp_path.iterdir())
