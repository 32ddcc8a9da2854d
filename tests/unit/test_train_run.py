"""Runs from recipe to model: folders, resuming after kills and signals, two processes, parity with transformers.

``TOKENMILL_KILLS=20`` kills a run at twenty random moments instead of two.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenmill
from fakes.tiny_llm import tiny_folder
from fakes.training import Recorder
from tokenmill.core.errors import NotFoundError, UsageError
from tokenmill.formats.safetensors_file import SafetensorsFile
from tokenmill.train.plan import plan_run
from tokenmill.train.run import RunResult, probe

WORKER = Path(__file__).parents[1] / "fakes" / "train_worker.py"
WORDS = "the cat dog sat on mat log and hello there what is capital of France".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and some conversations."""
    folder = tmp_path_factory.mktemp("train")
    tiny_folder(folder / "model")
    draw = random.Random(0)
    rows = []
    for _ in range(60):
        said = [" ".join(draw.choices(WORDS, k=draw.randint(2, 12))) for _ in range(2)]
        rows.append({"messages": [{"role": "user", "content": said[0]}, {"role": "assistant", "content": said[1]}]})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def recipe(place: Path, runs: Path, **changes: Any) -> dict[str, Any]:
    return {
        "recipe": "test",
        "objective": "sft",
        "model": str(place / "model"),
        "data": {"path": str(place / "data.jsonl"), "eval_share": 0.2, "cache": False},
        "seq_len": 64,
        "micro_batch": 1,
        "accumulate": 2,
        "steps": 8,
        "lr": 1e-3,
        "dtype": "float32",
        "save_every": 3,
        "save_best": 0,
        "eval_every": 4,
        "sample_tokens": 0,
        "trackers": [],
        "workers": 2,
        "out": str(runs),
        **changes,
    }


LORA = {"adapter": {"kind": "lora", "rank": 4, "dropout": 0.1}}
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": LORA,
    "qlora": {**LORA, "quantize": "nf4", "optimizer": "paged_adamw_8bit", "dtype": "bfloat16"},
}


def tensors(result: RunResult) -> dict[str, Tensor]:
    assert result.model is not None
    (path,) = result.model.glob("*.safetensors")
    file = SafetensorsFile(path)
    return {name: file.load(name).clone() for name in file.infos()}


def assert_same_bits(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_is_the_same_to_the_bit(kind: str, place: Path, tmp_path: Path) -> None:
    """Killed in mid-epoch, between checkpoints, with two loader workers, packing and dropout."""
    whole = Recorder()
    result = tokenmill.train(recipe(place, tmp_path / "whole", **KINDS[kind]), watchers=[whole])
    killed = Recorder()

    def kill(metrics: Any) -> None:
        killed.steps.append(metrics)
        if metrics.step == 5:
            raise KeyboardInterrupt

    killed.on_step = kill  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        tokenmill.train(recipe(place, tmp_path / "killed", **KINDS[kind]), watchers=[killed])
    assert killed.ends[0].reason == "failed"
    again = Recorder()
    resumed = tokenmill.train(resume=tmp_path / "killed" / "latest", watchers=[again])
    assert again.starts[0].step == 3
    assert whole.losses == killed.losses[:3] + again.losses
    assert [e.loss for e in whole.evals][-1] == again.evals[-1].loss
    assert_same_bits(tensors(result), tensors(resumed))


def start(folder: Path, *words: str, processes: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, str(WORKER), str(folder), *words]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [*launcher, *command[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def kill_later(process: subprocess.Popen[str], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()


@pytest.mark.timeout(900)
def test_killed_at_random_moments(place: Path, tmp_path: Path) -> None:
    """kill -9 at any moment: in a step, in a write, before the first checkpoint. The end is always the same."""
    kills = int(os.environ.get("TOKENMILL_KILLS", "2"))
    how = {"steps": 40, "save_every": 2, "dtype": "bfloat16", "eval_every": 0, "seq_len": 32}
    whole = tokenmill.train(recipe(place, tmp_path / "whole", **how), watchers=[])
    place_of_run = tmp_path / "run"
    place_of_run.mkdir()
    (place_of_run / "recipe.json").write_text(json.dumps(recipe(place, place_of_run / "runs", **how)))
    draw = random.Random(7)
    first = start(place_of_run)
    assert first.stdout is not None
    assert first.stdout.readline().startswith("step 1"), first.stderr and first.stderr.read()
    for _ in range(kills):
        kill_later(first, draw.uniform(0.0, 0.4))
        first = start(place_of_run, "resume")
        assert first.stdout is not None
        line = first.stdout.readline()  # the kill comes after the start, which takes seconds
        if line.startswith("end"):
            break
    out, errors = first.communicate(timeout=200)
    assert first.returncode == 0, errors
    assert "end finished 40" in line + out
    (run,) = [path for path in (place_of_run / "runs").iterdir() if not path.is_symlink()]
    end = SafetensorsFile(run / "model" / "model.safetensors")
    assert_same_bits(tensors(whole), {name: end.load(name) for name in end.infos()})
    assert not list((run / "checkpoints").glob(".*.part"))


def test_sigterm_saves_and_leaves_in_peace(place: Path, tmp_path: Path) -> None:
    how = {"steps": 5000, "save_every": 0, "eval_every": 0}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe(place, tmp_path / "runs", **how)))
    process = start(tmp_path)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "end stopped" in out
    (checkpoint,) = (tmp_path / "runs" / "latest" / "checkpoints").glob("step-*")
    last = [line for line in out.splitlines() if line.startswith("step")][-1]
    assert checkpoint.name == f"step-{last.split()[1]}", "the last step that was done is the one that was saved"


def test_two_processes_take_the_steps_of_one(place: Path, tmp_path: Path) -> None:
    """The same rows in the same order, gradients summed: equal losses within rounding; resumed by one, too."""
    how = {"steps": 6, "save_every": 3, "eval_every": 3, "workers": 0, "micro_batch": 1}
    one = Recorder()
    tokenmill.train(recipe(place, tmp_path / "one", **how, accumulate=2), watchers=[one])
    (tmp_path / "recipe.json").write_text(json.dumps(recipe(place, tmp_path / "runs", **how, accumulate=1)))
    process = start(tmp_path, processes=2)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    losses = [float(line.split()[2]) for line in out.splitlines() if line.startswith("step ")]
    torch.testing.assert_close(losses, one.losses, rtol=1e-5, atol=0)
    (run,) = [path for path in (tmp_path / "runs").iterdir() if not path.is_symlink()]
    for path in (run / "checkpoints").glob("step-6"):
        (run / "checkpoints" / "latest").unlink()
        (run / "checkpoints" / "latest").symlink_to("step-3")
        assert path.exists()
    alone = Recorder()
    tokenmill.train(resume=run, accumulate=2, watchers=[alone])
    torch.testing.assert_close(alone.losses, one.losses[3:], rtol=1e-5, atol=0)


def test_the_folder_of_a_run(place: Path, tmp_path: Path) -> None:
    result = tokenmill.train(recipe(place, tmp_path / "runs", steps=2), ["lr=2e-3"])
    assert result.reason == "finished"
    assert (tmp_path / "runs" / "latest").resolve() == result.folder.resolve()
    assert (
        "2e-3" in (result.folder / "config.yaml").read_text() or "0.002" in (result.folder / "config.yaml").read_text()
    )
    assert len((result.folder / "metrics.jsonl").read_text().splitlines()) >= 2
    trained = tokenmill.load_model(result.folder / "model")
    assert tokenmill.load_tokenizer(result.folder / "model").encode("the cat")
    base = tokenmill.load_model(place / "model")
    assert not torch.equal(trained.network.embed.weight, base.network.embed.weight)
    more = tokenmill.train(resume=result.folder, steps=3, watchers=[])
    assert more.step == 3
    with pytest.raises(NotFoundError, match="no run is here"):
        tokenmill.train(resume=tmp_path / "nothing")
    with pytest.raises(UsageError, match="give a recipe"):
        tokenmill.train()


def test_probe_leaves_nothing(place: Path, tmp_path: Path) -> None:
    from tokenmill.config.compose import compose

    plan = plan_run(compose(recipe(place, tmp_path / "runs")))
    assert 0 < probe(plan) < 10
    assert not (tmp_path / "runs").exists()


def test_a_new_model_of_a_size(place: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog sat on the log. " * 400)
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "mlp_size": 48}
    new = {"model": None, "shape": shape, "vocab_size": 300, "objective": "next_token"}
    data = {"path": str(tmp_path / "text.txt"), "cache": False}
    watcher = Recorder()
    given = recipe(place, tmp_path / "runs", **new, data=data, steps=30, lr=1e-2)
    result = tokenmill.train(given, watchers=[watcher])
    assert watcher.losses[-1] < 0.7 * watcher.losses[0]
    assert watcher.evals[-1].bits_per_byte is not None
    again = tokenmill.train(resume=result.folder, steps=31, watchers=[])
    assert again.step == 31
