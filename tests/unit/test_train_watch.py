"""Watching a run: what is told ends up in files, trackers, screen and report, and stays true when a run goes on."""

from __future__ import annotations

import json
import math
import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from tokenmill.config.compose import Composed, compose
from tokenmill.config.run_config import write_run_config
from tokenmill.core.errors import UsageError
from tokenmill.models.load import build, read_config
from tokenmill.train.flops import peak_flops, training_flops
from tokenmill.train.report import read_run, report_page
from tokenmill.train.watch.files import Files, cut_behind
from tokenmill.train.watch.progress import Progress, duration
from tokenmill.train.watch.statistics import Statistics, groups_of
from tokenmill.train.watch.trackers import trackers
from tokenmill.train.watch.watchers import Watch, watchers
from tokenmill.train.watch_protocol import EvalMetrics, Event, RunEnd, RunStart, Sample, StepMetrics, Watchers


def recipe(*overrides: str) -> Composed:
    return compose("lora", ["model=some-model", "data=rows.jsonl", *overrides])


def start(folder: Path, composed: Composed, model: nn.Module, step: int = 0) -> RunStart:
    folder.mkdir(parents=True, exist_ok=True)
    write_run_config(composed, folder)
    return RunStart(folder, composed.recipe, model, step, 64 * step, 10, 64, 1000)


def one_step(step: int, loss: float = 2.0, **more: Any) -> StepMetrics:
    return StepMetrics(step, loss, 1e-3, 0.5, 64, 40, 64 * step, 0.25, **more)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_from_beginning_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, model = tmp_path / "2026-01-01_000000-lora", nn.Linear(4, 4)
    watcher = Watchers(*watchers(recipe("stats_every=2").recipe))
    watcher.on_start(start(folder, recipe(), model))
    for step in range(1, 5):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        watcher.on_gradients(step, lambda: ((n, p, p.grad) for n, p in model.named_parameters() if p.grad is not None))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.01
        watcher.on_step(one_step(step, math.nan if step == 3 else 2.0, skipped="not finite" if step == 3 else None))
    watcher.on_eval(EvalMetrics(4, 1.5, 4.48, 0.9, 100, 0.1, True))
    watcher.on_sample(Sample(4, "Once", " upon <script>\x1b[2J"))
    watcher.on_event(Event(4, "checkpoint", "checkpoints/step-4", {"bytes": 12}))
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    watcher.on_end(RunEnd(4, "finished", {"loss": 2.0}, folder / "model"))

    told = rows(folder / "metrics.jsonl")
    assert [row["step"] for row in told] == [1, 2, 3, 4, 4, 4]
    assert told[0]["tokens_per_s"] == 256
    assert told[0]["mfu"] > 0
    assert told[0]["memory_mb"] > 10
    assert told[2]["loss"] is None
    assert told[2]["skipped"] == "not finite"
    assert told[1]["grad_norm/other"] == pytest.approx(math.sqrt(20))
    assert "grad_norm/other" not in told[0]
    assert told[4]["eval_bits_per_byte"] == 0.9
    assert told[5] == {"bytes": 12, "step": 4, "event": "checkpoint", "message": "checkpoints/step-4"}
    run = json.loads((folder / "run.json").read_text())
    assert (run["status"], run["step"], run["model"], run["trainable"]) == ("finished", 4, "model", 1000)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "finished, step 4 of 10" in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "\x1b" not in page
    assert 'http-equiv="refresh"' not in page
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "step 1/10: loss 2.000, 256 tok/s" in shown.err
    assert "held-out loss 1.5000" in shown.err
    assert "\x1b" not in shown.err


def test_a_run_that_goes_on_keeps_only_what_is_still_true(tmp_path: Path) -> None:
    composed, model = recipe("trackers=[]"), nn.Linear(4, 4)
    first = Watchers(*watchers(composed.recipe, screen=False))
    first.on_start(start(tmp_path / "run", composed, model))
    for step in range(1, 8):
        first.on_step(one_step(step))
        first.on_sample(Sample(step, "a", "b"))
    (tmp_path / "run" / "metrics.jsonl").open("a").write('{"step": 4, "lo')  # a kill tore the line off
    began = json.loads((tmp_path / "run" / "run.json").read_text())["started"]

    again = Watchers(*watchers(composed.recipe, screen=False))
    again.on_start(start(tmp_path / "run", composed, model, step=4))
    again.on_step(one_step(5, 1.0))
    told = rows(tmp_path / "run" / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in told] == [(1, 2.0), (2, 2.0), (3, 2.0), (4, 2.0), (5, 1.0)]
    assert [row["step"] for row in rows(tmp_path / "run" / "samples.jsonl")] == [1, 2, 3, 4]
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["started"] == began
    assert [at["step"] for at in run["resumed"]] == [4]
    assert "went on at step 4" in report_page(tmp_path / "run")


def test_every_nth_step_is_written_but_trouble_always(tmp_path: Path) -> None:
    files = Files(log_every=5)
    files.start(start(tmp_path, recipe(), nn.Linear(1, 1)))
    for step in range(1, 11):
        files.put("step", {"step": step, "loss": 1.0} | ({"skipped": "spike"} if step == 7 else {}))
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [5, 7, 10]


def test_a_file_that_is_true_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    before = path.stat().st_ino
    cut_behind(path, 2)
    assert path.stat().st_ino == before
    cut_behind(path, 1)
    assert path.read_text() == '{"step": 1}\n'


def test_steps_that_a_roll_back_made_void_are_not_drawn(tmp_path: Path) -> None:
    lines = [{"step": s, "loss": 2.0} for s in (1, 2, 3, 4)]
    lines += [{"step": 2, "event": "rollback", "message": "back at step 2"}]
    lines += [{"step": s, "loss": 1.0} for s in (3, 4)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [(r["step"], r["loss"]) for r in read_run(tmp_path).steps] == [(1, 2.0), (2, 2.0), (3, 1.0), (4, 1.0)]


def test_the_report_shows_where_settings_came_from(tmp_path: Path) -> None:
    composed = recipe("lr=0.0123").derived({"warmup": 7}, {"warmup": "a rule of thumb"})
    write_run_config(composed, tmp_path)
    page = report_page(tmp_path)
    for said in ("0.0123", "override", "derived: a rule of thumb", "settings at their default"):
        assert said in page


def test_a_report_of_an_empty_folder_is_a_page(tmp_path: Path) -> None:
    assert "step 0 of 1" in report_page(tmp_path)


def test_statistics_are_norms_and_true_ratios() -> None:
    torch.manual_seed(0)
    weights = {"layers.2.attn.q.weight": torch.randn(96, 96), "layers.2.mlp.up.weight": torch.randn(8, 8)}
    grads = {name: torch.randn_like(weight) for name, weight in weights.items()}
    watch = Statistics(every=3)
    watch.gradients(2, lambda: ((n, w, grads[n]) for n, w in weights.items()))
    assert watch.after_step() == {}
    watch.gradients(3, lambda: ((n, w, grads[n]) for n, w in weights.items()))
    for weight in weights.values():
        weight *= 1.02
    row = watch.after_step()
    assert row["grad_norm/attn"] == pytest.approx(float(grads["layers.2.attn.q.weight"].norm()), rel=1e-5)
    both = torch.cat([g.flatten() for g in grads.values()]).norm()
    assert row["grad_norm/layer.02"] == pytest.approx(float(both), rel=1e-5)
    assert row["weight_norm/mlp"] == pytest.approx(float(weights["layers.2.mlp.up.weight"].norm()) / 1.02, rel=1e-5)
    assert row["update_ratio/attn"] == pytest.approx(0.02, rel=1e-3)
    assert watch.after_step() == {}


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("layers.3.attn.q.weight", ["attn", "layer.03"]),
        ("layers.3.attn_norm.weight", ["norm", "layer.03"]),
        ("layers.12.mlp.up.lora_A.default.weight", ["adapter", "layer.12"]),
        ("embed.weight", ["embed"]),
        ("head.weight", ["head"]),
        ("odd", ["other"]),
    ],
)
def test_parameters_are_grouped_by_what_they_are(name: str, groups: list[str]) -> None:
    assert groups_of(name) == groups


def test_tensorboard_files_hold_the_curves(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event as TensorBoardEvent

    composed = recipe()
    watch = Watch(trackers(["tensorboard"]), Statistics(0))
    watch.on_start(start(tmp_path, composed, nn.Linear(2, 2)))
    watch.on_step(one_step(1, 3.25))
    watch.on_step(one_step(2, math.nan))
    watch.on_eval(EvalMetrics(2, 1.5, 4.5, None, 10, 0.1, True))
    watch.on_end(RunEnd(2, "finished", {}, None))
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, at, seen = file.read_bytes(), 0, {}
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = TensorBoardEvent.FromString(data[at + 12 : at + 12 + length])
        for value in event.summary.value:
            seen[value.tag, event.step] = value.simple_value
        at += 16 + length
    assert seen["train/loss", 1] == 3.25
    assert ("train/loss", 2) not in seen
    assert seen["eval/loss", 2] == 1.5


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"wandb, trackio are not installed; pip install wandb trackio"):
        watchers(recipe("trackers=[wandb,trackio]").recipe)


def fake_wandb(logged: list[Any], fail_at: int | None = None) -> types.ModuleType:
    def log(numbers: dict[str, float], step: int) -> None:
        if step == fail_at:
            raise OSError("network is down")
        logged.append((step, numbers["loss"]))

    module = types.ModuleType("wandb")
    module.init = lambda **given: types.SimpleNamespace(  # type: ignore[attr-defined]
        log=log, finish=lambda: logged.append(given)
    )
    return module


def test_a_tracker_by_name_gets_numbers_settings_and_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(logged))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    watch = Watch(trackers(["wandb"]), Statistics(0))
    watch.on_start(start(tmp_path / "runs" / "a b", recipe(), nn.Linear(2, 2)))
    watch.on_step(one_step(1))
    watch.on_sample(Sample(1, "private", "text"))
    watch.on_end(RunEnd(1, "finished", {}, None))
    assert logged[0] == (1, 2.0)
    assert logged[1]["id"] == "a-b"
    assert logged[1]["config"]["adapter.rank"] == 16


def test_a_tracker_that_fails_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logged: list[Any] = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(logged, fail_at=2))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    watch = Watch(trackers(["wandb"]), Statistics(0))
    watch.on_start(start(tmp_path, recipe(), nn.Linear(2, 2)))
    for step in (1, 2, 3):
        watch.on_step(one_step(step))
    assert logged == [(1, 2.0)]
    assert "network is down" in caplog.text


def test_a_terminal_gets_a_live_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(terminal=True)
    watch = Watch([progress], Statistics(0))
    watch.on_start(start(tmp_path, recipe(), nn.Linear(2, 2)))
    watch.on_step(one_step(1))
    watch.on_event(Event(1, "spike", "\x1b]0;owned\x07 [red]bad"))
    watch.on_end(RunEnd(1, "stopped", {}, None))
    shown = capsys.readouterr().err
    assert "1/10" in shown
    assert "loss 2.000" in shown
    assert "[red]bad" in shown
    assert "\x1b]0;owned" not in shown


def test_a_profile_is_written(tmp_path: Path) -> None:
    composed, model = recipe("profile=2", "trackers=[]"), nn.Linear(8, 8)
    watcher = Watchers(*watchers(composed.recipe, screen=False))
    watcher.on_start(start(tmp_path, composed, model))
    for step in range(1, 6):
        model(torch.ones(2, 8)).sum().backward()
        watcher.on_step(one_step(step))
    watcher.on_end(RunEnd(5, "finished", {}, None))
    assert "aten::addmm" in (tmp_path / "profile" / "summary.txt").read_text()
    assert json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]


def test_work_of_a_token_is_counted_from_the_definition() -> None:
    model = build(read_config(tiny.FAMILIES["llama"], "llama")[1]).requires_grad_(True)
    weights = sum(p.numel() for p in model.parameters())
    full = training_flops(model, 2)
    assert 5 * weights < full < 8 * weights
    model.requires_grad_(False)
    assert training_flops(model, 2) == pytest.approx(full * 2 / 3)


def test_the_peak_is_what_a_product_reaches() -> None:
    peak = peak_flops(torch.device("cpu"), torch.float32)
    a = torch.ones(512, 512)
    timed: Callable[[], float] = lambda: _seconds(lambda: a @ a)  # noqa: E731
    assert 2 * 512**3 / min(timed() for _ in range(5)) < 20 * peak
    assert peak > 1e8


def _seconds(work: Callable[[], object]) -> float:
    import time

    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


@pytest.mark.parametrize(("seconds", "said"), [(4.4, "4 s"), (89, "89 s"), (600, "10 min"), (12_000, "3 h 20 min")])
def test_times_left_read_well(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_report_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(folder: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tokenmill.train.report.write_report", full)
    watcher = Watchers(*watchers(recipe("trackers=[]").recipe, screen=False))
    watcher.on_start(start(tmp_path, recipe(), nn.Linear(1, 1)))
    watcher.on_step(one_step(1))
    watcher.on_end(RunEnd(1, "finished", {}, None))
    assert "No space left" in caplog.text
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [1]
