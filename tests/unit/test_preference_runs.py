"""Preference runs from recipe to model on a tiny one: what is learned, the cached reference, resuming, the report."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tokenmill
from fakes.tiny_llm import tiny_folder
from fakes.training import Recorder
from tokenmill.adapt import switch_of
from tokenmill.config.compose import compose
from tokenmill.core.errors import ConfigError
from tokenmill.data.compared import CollateCompared, Compared
from tokenmill.formats.safetensors_file import SafetensorsFile
from tokenmill.nn.context import Packed
from tokenmill.train.distributed import World
from tokenmill.train.objectives.logprobs import answer_logprobs
from tokenmill.train.plan import plan_run
from tokenmill.train.reference import references
from tokenmill.train.report import report_page
from tokenmill.train.run import RunResult, build_model

WORKER = Path(__file__).parents[1] / "fakes" / "train_worker.py"
WORDS = "the cat dog sat on mat log and hello there what is capital of France".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and pairs whose chosen answers begin with one word and whose rejected ones with another."""
    folder = tmp_path_factory.mktemp("preferences")
    tiny_folder(folder / "model")
    tiny_folder(folder / "other", chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    draw = random.Random(0)
    rows = []
    for i in range(60):
        answer = " ".join(draw.choices(WORDS, k=draw.randint(1, 5)))
        rows.append({"prompt": f"what {i} is", "chosen": f"hello {answer}", "rejected": f"dog {answer}"})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def recipe(place: Path, runs: Path, objective: str, **changes: Any) -> dict[str, Any]:
    return {
        "recipe": "test",
        "objective": objective,
        "model": str(place / "model"),
        "data": {"path": str(place / "pairs.jsonl"), "eval_share": 0.25},
        "adapter": {"kind": "lora", "rank": 8},
        "seq_len": 256,
        "micro_batch": 1,
        "accumulate": 2,
        "steps": 12,
        "lr": 1e-2,
        "weight_decay": 0.0,
        "dtype": "float32",
        "eval_every": 0,
        "sample_tokens": 0,
        "trackers": [],
        "out": str(runs),
        **changes,
    }


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        ("dpo", {}),
        ("dpo", {"adapter": None, "lr": 2e-3, "preference": {"loss": "ipo"}}),
        ("simpo", {"preference": {"beta": 2.0, "gamma": 1.0}}),
        ("orpo", {}),
        ("kto", {"steps": 16}),
        ("reward", {"reward": {"center": 0.01}}),
    ],
    ids=["dpo", "ipo-full", "simpo", "orpo", "kto", "reward"],
)
def test_held_out_preferences_are_learned(place: Path, tmp_path: Path, objective: str, changes: dict[str, Any]) -> None:
    """Held-out preference accuracy above 0.9, from a model that knows nothing of them."""
    recorder = Recorder()
    result = tokenmill.train(recipe(place, tmp_path / "runs", objective, **changes), watchers=[recorder])
    assert result.metrics["eval_rewards/accuracies"] > 0.9
    assert recorder.evals[-1].perplexity is None
    assert np.isfinite(recorder.losses).all()
    assert sum(recorder.losses[-3:]) < sum(recorder.losses[:3])
    first = recorder.steps[0].extra
    if objective in ("dpo", "kto"):  # the reference is the policy as it begins: no reward yet
        assert first["rewards/chosen"] == pytest.approx(0.0, abs=1e-4)
        assert first["kl"] == pytest.approx(0.0, abs=1e-3)
        assert recorder.events[0].kind == "reference"


def test_the_reference_is_the_adapter_switched_off(place: Path, tmp_path: Path) -> None:
    """Also where the adapter that is trained has begun to say something else."""
    plan = plan_run(compose(recipe(place, tmp_path / "runs", "dpo")))
    model = build_model(plan)
    for name, parameter in model.network.named_parameters():
        if name.endswith(".b"):
            parameter.data.normal_()
    found = references(plan, model, World())
    assert found is not None
    assert "60 samples computed" in found.told
    data = plan.splits.train
    assert isinstance(data, Compared)
    base = tokenmill.load_model(place / "model", dtype="float32").decoder
    batch = CollateCompared()([data[i] for i in range(len(data))], 0)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(found.train), answer_logprobs(base, batch).view(-1, 2), rtol=1e-5, atol=1e-4
        )
        with switch_of(model).use("default"):
            changed = answer_logprobs(model.decoder, batch).view(-1, 2)
    assert (changed - torch.from_numpy(found.train)).abs().max() > 1.0


def test_the_reference_is_computed_once(
    place: Path, tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept by data, model and template; another model, dtype, file or template is computed anew, a broken file too."""

    def told(**changes: Any) -> str:
        plan = plan_run(compose(recipe(place, tmp_path / "runs", "dpo", **changes)))
        found = references(plan, build_model(plan), World())
        assert found is not None
        return found.told

    assert "60 samples computed" in told()
    assert "from the cache" in told()
    assert "from the cache" in told(adapter={"kind": "lora", "rank": 2}, lr=1e-3, seed=5)
    assert "computed" in told(dtype="bfloat16")
    assert "computed" in told(model=str(place / "other"), preference={"reference": None})
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    data = {"path": str(place / "pairs.jsonl"), "eval_share": 0.25}
    assert "computed" in told(data={**data, "chat_template": template})
    for file in (own_home / "cache" / "reference").iterdir():
        file.write_bytes(file.read_bytes()[:-3])
    assert "60 samples computed" in told()
    assert "60 samples computed" in told(data={**data, "cache": False})


def test_another_reference_model(place: Path, tmp_path: Path) -> None:
    """A model of its own, which must cut text in the same way."""
    same = recipe(place, tmp_path / "runs", "dpo", preference={"reference": str(place / "other")}, steps=1)
    result = tokenmill.train(same, watchers=[])
    assert result.step == 1
    tokenizer = json.loads((place / "other" / "tokenizer.json").read_text())
    odd = tmp_path / "odd"
    tiny_folder(odd)
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[5:7]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (odd / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="another tokenizer"):
        tokenmill.train(recipe(place, tmp_path / "runs", "dpo", preference={"reference": str(odd)}), watchers=[])


def weights(result: RunResult) -> dict[str, torch.Tensor]:
    assert result.model is not None
    (path,) = result.model.glob("*.safetensors")
    file = SafetensorsFile(path)
    return {name: file.load(name) for name in file.infos()}


@pytest.mark.parametrize("objective", ["kto", "reward"])
def test_a_stopped_run_goes_on_exactly(place: Path, tmp_path: Path, objective: str) -> None:
    """Two steps and two more give the bits of four: reference, head and order are what they were."""
    whole = tokenmill.train(recipe(place, tmp_path / "a", objective, steps=4, schedule="constant"), watchers=[])
    half = tokenmill.train(recipe(place, tmp_path / "b", objective, steps=2, schedule="constant"), watchers=[])
    again = tokenmill.train(resume=half.folder, overrides=["steps=4"], watchers=[])
    assert again.step == 4
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(again)[name]), name


def test_micro_batches_change_nothing(place: Path, tmp_path: Path) -> None:
    """KTO's baseline and ORPO's two means are of the whole step, however it is split."""
    for objective in ("kto", "orpo"):
        split = {"steps": 1, "schedule": "constant", "adapter": None, "optimizer": "adamw"}
        one = Recorder()
        tokenmill.train(recipe(place, tmp_path / "x", objective, micro_batch=4, accumulate=1, **split), watchers=[one])
        other = Recorder()
        tokenmill.train(
            recipe(place, tmp_path / "y", objective, micro_batch=1, accumulate=4, **split), watchers=[other]
        )
        assert one.steps[0].loss == pytest.approx(other.steps[0].loss, rel=1e-5)
        assert one.steps[0].grad_norm == pytest.approx(other.steps[0].grad_norm, rel=1e-4)


def test_two_processes_are_one(place: Path, tmp_path: Path) -> None:
    """Each computes half of the reference and of the baseline; the run is the one of a single process."""
    how = {"steps": 2, "seed": 3, "schedule": "constant"}
    one = Recorder()
    alone = tokenmill.train(recipe(place, tmp_path / "one", "kto", accumulate=2, **how), watchers=[one])
    (tmp_path / "recipe.json").write_text(json.dumps(recipe(place, tmp_path / "two", "kto", accumulate=1, **how)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENMILL_HOME": str(tmp_path / "fresh")}
    command = [*launcher, str(WORKER), str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    losses = [float(line.split()[2]) for line in done.stdout.splitlines() if line.startswith("step")]
    assert losses == pytest.approx(one.losses, rel=1e-4)
    together = RunResult((tmp_path / "two" / "latest").resolve(), "finished", 2, {}, tmp_path / "two/latest/model")
    for name, tensor in weights(alone).items():
        torch.testing.assert_close(weights(together)[name], tensor, rtol=1e-3, atol=1e-4)


def test_the_answers_change_as_asked(place: Path, tmp_path: Path) -> None:
    """After a dozen steps of DPO the model would begin its answer to a new question as the chosen ones begin."""
    result = tokenmill.train(recipe(place, tmp_path / "runs", "dpo"), watchers=[])
    model = tokenmill.load_model(place / "model", dtype="float32")
    tokenizer = tokenmill.load_tokenizer(place / "model")
    from tokenmill.adapt import load_adapter

    assert result.model is not None
    ids = tokenizer.encode_chat([{"role": "user", "content": "what 99 is"}])
    good, bad = (tokenizer.encode(word, add_special_tokens=False)[0] for word in ("hello", "dog"))

    def preferred() -> float:
        with torch.no_grad():
            logits_V = model.decoder(torch.tensor(ids), Packed([len(ids)]))[-1]
        return float(logits_V[good] - logits_V[bad])

    before = preferred()
    load_adapter(model, result.model)
    assert preferred() > before + 1.0


def test_the_report_shows_who_wins(place: Path, tmp_path: Path) -> None:
    result = tokenmill.train(recipe(place, tmp_path / "runs", "dpo", steps=4, eval_every=2))
    page = (result.folder / "report.html").read_text()
    assert "Share of preferences told apart" in page
    assert "preferences told apart" in page
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    held_out = [row for row in rows if "eval_loss" in row]
    assert all("eval_rewards/accuracies" in row and "eval_perplexity" not in row for row in held_out)
    early = [json.dumps(row) + "\n" for row in rows if "eval_loss" not in row]
    (result.folder / "metrics.jsonl").write_text("".join(early))
    assert "Share of preferences told apart" in report_page(result.folder)  # before the first evaluation too
