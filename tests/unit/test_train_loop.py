"""The loop: steps that do not depend on how they are split, runs that go on exactly, runs that defend themselves."""

from __future__ import annotations

import contextlib
import errno
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fakes.training import SMALL, Documents, Recorder, decoder, document
from tokenmill.core.errors import FormatError, NotFoundError
from tokenmill.data.batch import Batch
from tokenmill.nn.context import Packed
from tokenmill.train import checkpoint
from tokenmill.train.evaluate import Evaluation, evaluate
from tokenmill.train.loop import Loop, Settings, TrainingError
from tokenmill.train.objectives.next_token import NextToken
from tokenmill.train.optim import AdamW, Muon, groups_of
from tokenmill.train.safety import LossScale, SpikeGuard
from tokenmill.train.schedules import Schedule
from tokenmill.train.signals import StopRequest, stop_on_signals

CPU = torch.device("cpu")
FAST = Settings(window=8, save_every=4, eval_every=0)


def loop(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    total: int = 12,
    accumulate: int = 1,
    settings: Settings = FAST,
    source: Documents | None = None,
    optimizer: Callable[..., AdamW] = AdamW,
    lr: float = 3e-3,
    config: dict[str, Any] | None = None,
    **parts: Any,
) -> tuple[Loop, Recorder]:
    network, watcher = decoder(dtype, config), Recorder()
    groups = groups_of(network, weight_decay=0.1, lr_scales={})
    made = Loop(
        network,
        NextToken(),
        source or Documents(),
        optimizer(dict(network.named_parameters()), groups),
        Schedule("cosine", lr, total, warmup=2, accumulate=accumulate),
        folder=folder,
        settings=settings,
        watcher=watcher,
        **parts,
    )
    return made, watcher


def weights(made: Loop) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in made.parameters.items()}


def assert_same_bits(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


# --- what a step is


@pytest.mark.parametrize(("per_batch", "accumulate"), [(1, 12), (3, 4), (4, 3), (6, 2)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_do_not_depend_on_the_split(
    tmp_path: Path, per_batch: int, accumulate: int, checkpointing: bool
) -> None:
    """Twelve documents with ragged masks in one micro-batch, or in any number of them: the same step."""

    def gradients(per_batch: int, accumulate: int) -> tuple[float, dict[str, Tensor]]:
        made, _ = loop(tmp_path, source=Documents(per_batch), settings=Settings(checkpointing=checkpointing))
        micro = [next(iter(made.source)) for _ in range(accumulate)]
        loss, _ = made._backward(micro, float(sum(batch.num_labels for batch in micro)))
        return loss, {name: g.clone() for name, g in made.gradients.finish(made.world).items()}

    whole, split = gradients(12, 1), gradients(per_batch, accumulate)
    assert whole[0] == pytest.approx(split[0], rel=1e-6)
    for name, gradient in whole[1].items():
        assert (gradient - split[1][name]).norm() <= 1e-5 * gradient.norm(), name


def test_packed_logits_are_those_of_each_document() -> None:
    network, documents = decoder(), [document(i) for i in range(6)]
    batch = Batch.of(documents)
    packed = network(batch.tokens_T, Packed(batch.lengths)).split(batch.lengths)
    for sample, logits in zip(documents, packed, strict=True):
        alone = network(torch.from_numpy(sample.tokens), Packed([len(sample)]))
        torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-6)


def test_sixteen_bit_gradients_are_summed_in_float32(tmp_path: Path) -> None:
    made, _ = loop(tmp_path, dtype=torch.bfloat16, accumulate=3)
    micro = [next(iter(made.source)) for _ in range(3)]
    made._backward(micro, float(sum(batch.num_labels for batch in micro)))
    gradients = made.gradients.finish(made.world)
    assert {g.dtype for g in gradients.values()} == {torch.float32}
    assert all(p.grad is None for p in made.parameters.values())


def test_a_run_learns_and_leaves_no_trace_in_torch(tmp_path: Path) -> None:
    state, deterministic = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    made, watcher = loop(tmp_path, total=60, lr=1e-2)
    end = made.run()
    assert end.reason == "finished"
    assert end.metrics["loss"] < 0.6 * watcher.losses[0]
    assert torch.equal(state, torch.get_rng_state())
    assert deterministic == torch.are_deterministic_algorithms_enabled()
    assert [step.step for step in watcher.steps] == list(range(1, 61))
    assert watcher.steps[-1].total_tokens == sum(step.tokens for step in watcher.steps)
    assert "forward" not in vars(made.network.layers[0])


def test_float16_scales_its_loss_and_gets_over_overflows(tmp_path: Path) -> None:
    made, watcher = loop(tmp_path, dtype=torch.float16, total=50, settings=Settings(scale_loss=True), lr=1e-2)
    made.loss_scale.value = 2.0**30
    made.run()
    assert watcher.kinds().count("overflow") >= 3
    assert [s for s in watcher.steps if s.skipped is None]
    assert watcher.losses[-1] < watcher.losses[0]
    assert made.loss_scale.value < 2.0**30


# --- going on


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16": {"dtype": torch.bfloat16, "accumulate": 2},
    "8bit": {"optimizer": lambda *a, **k: AdamW(*a, moments="8bit", **k)},
    "muon": {"optimizer": Muon},
    "float16": {"dtype": torch.float16, "settings": Settings(save_every=4, scale_loss=True)},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_and_resumed_is_the_same_to_the_bit(tmp_path: Path, variant: str) -> None:
    how = VARIANTS[variant]
    whole, told = loop(tmp_path / "whole", **how)
    whole.run()
    stop = StopRequest()
    first, before = loop(tmp_path / "parts", **how)
    before.on_step = lambda metrics: stop.ask() if metrics.step == 6 else None  # type: ignore[method-assign]
    assert first.run(stop).reason == "stopped"
    latest = first.checkpoints.latest()
    assert latest is not None
    assert latest.name in ("step-6", "step-7"), "a signal is obeyed at the next border"
    second, after = loop(tmp_path / "parts", **how)
    second.resume(latest)
    second.run()
    assert_same_bits(weights(whole), weights(second))
    assert_same_bits(whole.optimizer.tensors(), second.optimizer.tensors())
    assert [s.loss for s in told.steps][-len(after.steps) :] == after.losses


def test_a_run_without_its_last_steps_is_resumed_from_the_checkpoint_before(tmp_path: Path) -> None:
    """As after a kill: step 9 was done but not saved, and what is newer than ``latest`` is forgotten."""
    whole, _ = loop(tmp_path / "whole")
    whole.run()
    killed, told = loop(tmp_path / "killed")

    def kill(metrics: Any) -> None:
        if metrics.step == 9:
            raise KeyboardInterrupt

    told.on_step = kill  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    killed.checkpoints.wait()
    latest = killed.checkpoints.latest()
    assert latest is not None
    assert latest.name == "step-8"
    again, _ = loop(tmp_path / "killed")
    again.resume(latest)
    again.run()
    assert_same_bits(weights(whole), weights(again))


def test_wsd_cools_down_from_any_checkpoint(tmp_path: Path) -> None:
    stable, _ = loop(tmp_path, total=100)
    stable.schedule = Schedule("wsd", 1e-3, 100, cooldown=0.2)
    stable.schedule, total = Schedule("wsd", 1e-3, 4, cooldown=1e-9), 10
    stable.run()
    made, told = loop(tmp_path)
    made.schedule = Schedule("wsd", 1e-3, total, cooldown=0.6)
    latest = made.checkpoints.latest()
    assert latest is not None
    made.resume(latest)
    made.run()
    rates = [step.lr for step in told.steps]
    assert rates[0] == pytest.approx(1e-3)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(1e-3 / 6)


# --- checkpoints


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, watcher = loop(tmp_path, total=12)
    real, calls = checkpoint.save_tensors, []

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        calls.append(path)
        if "step-8" in str(path):
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    end = made.run()
    assert end.reason == "finished"
    assert made.checkpoints.steps() == [4, 12]
    assert any("No space left" in event.message for event in watcher.events)
    assert not list((tmp_path / "checkpoints").glob(".*"))
    again, _ = loop(tmp_path)
    again.resume(tmp_path / "checkpoints" / "step-4")
    monkeypatch.setattr(checkpoint, "save_tensors", real)
    again.run()
    assert_same_bits(weights(made), weights(again))


def test_latest_is_moved_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any of the calls that change the folder, ``latest`` names a checkpoint that is whole."""
    made, _ = loop(tmp_path)
    made.save(background=False)
    made.progress.step = 1
    for call in ("mkdir", "save_tensors", "write_text", "fsync", "replace", "symlink_to"):
        for after in range(3):
            left = [after]

            def die(real: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
                def dying(*args: Any, **kwargs: Any) -> Any:
                    left[0] -= 1
                    if left[0] < 0:
                        raise KeyboardInterrupt
                    return real(*args, **kwargs)

                return dying

            owner = {"save_tensors": checkpoint, "fsync": checkpoint.os, "replace": checkpoint.os}.get(call, Path)
            with monkeypatch.context() as patch:
                patch.setattr(owner, call, die(getattr(owner, call)))
                with contextlib.suppress(KeyboardInterrupt):
                    made.save(background=False)
            latest = made.checkpoints.latest()
            assert latest is not None
            checkpoint.read_checkpoint(latest)
    made.save(background=False)
    assert made.checkpoints.latest() == (tmp_path / "checkpoints" / "step-1").resolve()


def test_what_is_kept(tmp_path: Path) -> None:
    losses = iter([5.0, 1.0, 2.0, 3.0, 4.0, 6.0])

    def evaluation() -> Evaluation:
        return Evaluation(next(losses), 1.0, None, 1, 0.0)

    settings = Settings(eval_every=2, save_every=2, save_keep=2, save_best=2)
    made, watcher = loop(tmp_path, settings=settings, evaluation=evaluation)
    made.run()
    assert made.checkpoints.steps() == [4, 6, 10, 12], "the two best and the two newest"
    assert [e.best for e in watcher.evals] == [True, True, False, False, False, False]


def test_early_stop(tmp_path: Path) -> None:
    losses = iter([5.0, 1.0, 2.0, 3.0])
    settings = Settings(eval_every=1, early_stop=2)
    made, _ = loop(tmp_path, settings=settings, evaluation=lambda: Evaluation(next(losses), 1.0, None, 1, 0.0))
    end = made.run()
    assert (end.reason, end.step) == ("early stop", 4)
    assert end.metrics["eval_loss"] == 1.0


def test_broken_checkpoints_are_refused(tmp_path: Path) -> None:
    made, _ = loop(tmp_path)
    with pytest.raises(NotFoundError):
        made.resume(tmp_path / "nothing")
    made.save(background=False)
    path = made.checkpoints.latest()
    assert path is not None
    other, _ = loop(tmp_path, config={**SMALL, "num_hidden_layers": 1})
    with pytest.raises(FormatError):
        other.resume(path)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "version": 99}))
    with pytest.raises(FormatError, match="version"):
        made.resume(path)


# --- safety

SPIKE = Settings(window=20, save_every=10, sigma=6.0, retries=2)


def spoilt(numbers: set[int], how: Callable[[Batch], None]) -> Callable[[int, Batch], Batch]:
    def change(number: int, batch: Batch) -> Batch:
        if number in numbers:
            how(batch)
        return batch

    return change


def noise(batch: Batch) -> None:
    draw = torch.Generator().manual_seed(int(batch.tokens_T.sum()))
    batch.labels_T.copy_(torch.randint(97, batch.labels_T.shape, generator=draw))


def no_labels(batch: Batch) -> None:
    batch.labels_T.fill_(-100)


def poison(batch: Batch) -> None:
    batch.indices.append(-1)


class PoisonedLoss(NextToken):
    """NaN for batches that :func:`poison` marked, as an overflow in the forward pass would give."""

    def __call__(self, model: Any, batch: Batch) -> Any:
        loss = super().__call__(model, batch)
        if -1 in batch.indices:
            loss.sum = loss.sum * math.nan
        return loss


def test_nan_in_a_batch_stops_nothing_and_is_reported(tmp_path: Path) -> None:
    made, watcher = loop(tmp_path, total=20)
    made.objective = PoisonedLoss()
    made.source.change = spoilt({5, 6, 11}, poison)  # type: ignore[attr-defined]
    end = made.run()
    assert end.reason == "finished"
    assert watcher.kinds().count("not finite") == 3
    assert [s.step for s in watcher.steps if s.skipped] == [6, 7, 12]
    assert all(torch.isfinite(p).all() for p in made.parameters.values())
    assert 15 in next(e for e in watcher.events if e.kind == "not finite").data["samples"]
    assert end.metrics["loss"] < watcher.losses[0]


def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    made, _ = loop(tmp_path, settings=Settings(retries=3))
    made.objective = PoisonedLoss()
    made.source.change = spoilt(set(range(4, 99)), poison)  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match="4 steps in a row"):
        made.run()


def test_a_spike_is_rolled_back_and_its_data_passed_over(tmp_path: Path) -> None:
    made, watcher = loop(tmp_path, total=60, settings=SPIKE, lr=1e-2, source=Documents(16))
    made.source.change = spoilt({45}, noise)  # type: ignore[attr-defined]
    seen: list[int] = []
    change = made.source.change  # type: ignore[attr-defined]
    made.source.change = lambda n, batch: (seen.append(n), change(n, batch))[1]  # type: ignore[attr-defined]
    end = made.run()
    assert end.reason == "finished"
    assert watcher.kinds().count("rollback") == 1
    event = next(e for e in watcher.events if e.kind == "spike")
    assert 45 * 16 in event.data["samples"]
    assert seen == list(range(len(seen))), "no data twice, none left out"
    assert [s.step for s in watcher.steps][44:48] == [45, 41, 42, 43], "back at step 40; the bad step was never told"
    assert watcher.losses[-1] < 0.6 * watcher.losses[0]


def test_rollbacks_are_counted(tmp_path: Path) -> None:
    made, watcher = loop(tmp_path, total=90, settings=SPIKE, lr=1e-2, source=Documents(16))
    made.source.change = spoilt({45, 57, 69, 81, 93}, noise)  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match="2 times already"):
        made.run()
    assert watcher.kinds().count("rollback") == 2


@pytest.mark.parametrize(("policy", "kinds"), [("skip", 1), ("off", 0)])
def test_other_policies(tmp_path: Path, policy: str, kinds: int) -> None:
    made, watcher = loop(tmp_path, total=60, settings=replace(SPIKE, on_spike=policy), lr=1e-2, source=Documents(16))
    made.source.change = spoilt({45}, noise)  # type: ignore[attr-defined]
    made.run()
    assert watcher.kinds().count("spike") == kinds
    assert len([s for s in watcher.steps if s.skipped == "spike"]) == kinds


def test_stop_policy(tmp_path: Path) -> None:
    made, _ = loop(tmp_path, total=60, settings=replace(SPIKE, on_spike="stop"), lr=1e-2, source=Documents(16))
    made.source.change = spoilt({45}, noise)  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match="step 46"):
        made.run()


def test_the_guard_waits_for_a_full_window_and_for_more_than_noise() -> None:
    guard = SpikeGuard(window=8, sigma=6.0)
    for i in range(8):
        assert guard.judge(100.0 * (i % 2), 1.0) is None, "the window is not full yet"
        guard.accept(2.0, 1.0)
    assert guard.judge(2.01, 1.0) is None, "a loss that stood still may move a little"
    assert guard.judge(2.2, 1.0) == "spike"
    assert guard.judge(2.0, 1.5) == "spike"
    assert guard.judge(1.0, 0.1) is None
    assert guard.judge(math.nan, 1.0) == guard.judge(1.0, math.inf) == "not finite"
    again = SpikeGuard(window=8)
    again.load(json.loads(json.dumps(guard.state())))
    assert again.scores(2.2, 1.0) == guard.scores(2.2, 1.0)


def test_the_loss_scale_grows_again() -> None:
    scale = LossScale(True)
    assert scale.overflowed()
    for _ in range(LossScale.GROW_AFTER):
        scale.succeeded()
    assert scale.value == 2.0**16
    assert not LossScale(False).overflowed()


def test_a_step_without_labels_is_left_out(tmp_path: Path) -> None:
    made, watcher = loop(tmp_path)
    made.source.change = spoilt({3}, no_labels)  # type: ignore[attr-defined]
    made.run()
    assert [s.step for s in watcher.steps if s.skipped == "no labels"] == [4]


# --- the rest


def test_schedules() -> None:
    def rates(kind: str, **how: Any) -> list[float]:
        schedule = Schedule(kind, 1.0, 10, **how)
        return [round(schedule.lr(step), 4) for step in range(11)]

    assert rates("constant", warmup=2)[:4] == [0.5, 1.0, 1.0, 1.0]
    assert rates("linear", min_lr=0.1) == [1.0, 0.91, 0.82, 0.73, 0.64, 0.55, 0.46, 0.37, 0.28, 0.19, 0.1]
    assert rates("cosine")[5] == 0.5
    assert rates("cosine", min_lr=0.2)[10] == 0.2
    assert rates("wsd", cooldown=0.2) == [1.0] * 9 + [0.5, 0.0]
    ramp = Schedule("constant", 1.0, 12, accumulate=8, ramp=0.5)
    assert [ramp.micro_batches(step) for step in (0, 2, 3, 5, 6, 11)] == [2, 2, 4, 4, 8, 8]
    assert ramp.lr(0) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        Schedule("cosin", 1.0, 1)


def test_evaluation_counts_bytes_and_ignores_dropout_mode() -> None:
    network = decoder()
    network.train()
    batches = [Batch.of([document(i)]) for i in range(4)]
    got = evaluate(network, NextToken(z_loss=0.1), batches, device=CPU, byte_lengths_V=torch.full((97,), 2.0))
    assert network.training
    labels = torch.cat([batch.labels_T for batch in batches])
    logits = torch.cat([network(batch.tokens_T, Packed(batch.lengths)) for batch in batches])
    want = torch.nn.functional.cross_entropy(logits, labels).item()
    assert got.loss == pytest.approx(want, rel=1e-5)
    assert got.perplexity == pytest.approx(math.exp(want), rel=1e-5)
    assert got.bits_per_byte == pytest.approx(want / math.log(2) / 2, rel=1e-5)


def test_signals_ask_and_are_given_back() -> None:
    import os
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
    assert signal.getsignal(signal.SIGTERM) is before
