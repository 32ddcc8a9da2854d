"""The training loop: the only one. What differs between runs are values that it is given.

A step takes its micro-batches, counts the valid tokens of all of them on all processes, and divides every loss by that
number before its backward pass: gradients do not depend on how a step is split. What is random (dropout) is seeded
anew for every step from seed, step and process, so a resumed run repeats it without any stored state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tokenmill.core.errors import FormatError, TokenmillError
from tokenmill.train.activations import layers_recomputed, saving_memory
from tokenmill.train.checkpoint import Checkpoints, Snapshot, read_checkpoint
from tokenmill.train.distributed import World
from tokenmill.train.evaluate import Evaluation, Means
from tokenmill.train.gradients import GradientSum, clip_factor, global_norm, named
from tokenmill.train.objectives.base import Objective, OfStep
from tokenmill.train.optim.base import Optimizer
from tokenmill.train.safety import LossScale, SpikeGuard
from tokenmill.train.schedules import Schedule
from tokenmill.train.signals import StopRequest
from tokenmill.train.watch_protocol import EvalMetrics, Event, RunEnd, Sample, StepMetrics, Watcher


class TrainingError(TokenmillError):
    """A run cannot go on: losses that stay wrong, a disk that stays full."""


class Source(Protocol):
    """Where batches come from: :class:`tokenmill.data.loader.Loader`."""

    def __iter__(self) -> Iterator[Any]: ...
    def state(self) -> dict[str, Any]: ...
    def load(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Settings:
    """The numbers of a run, all known; times in steps, 0 means never (checkpoints and evaluation: only at the end)."""

    seed: int = 0
    clip: float = 1.0
    checkpointing: bool = False
    scale_loss: bool = False
    """float16: multiply the loss, see :class:`~tokenmill.train.safety.LossScale`."""
    eval_every: int = 0
    eval_first: bool = False
    """Also before the first step: what is measured there is what a gain is a gain over."""
    sample_every: int = 0
    early_stop: int = 0
    save_every: int = 0
    save_minutes: float = 0.0
    save_keep: int = 2
    save_best: int = 0
    on_nonfinite: str = "skip"
    on_spike: str = "rollback"
    sigma: float = 6.0
    window: int = 128
    retries: int = 3


@dataclass
class _Progress:
    """What changes while the loop runs and is not in a part with a state of its own."""

    step: int = 0
    tokens: int = 0
    best: float = math.inf
    evals_without_better: int = 0
    rollbacks: int = 0
    skipped_in_a_row: int = 0
    best_steps: list[list[float]] | None = None
    """[loss, step] of the checkpoints that are kept for their evaluation, the best first."""


class Loop:
    """Put together by ``run.py``, or by a person with parts of their own."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        source: Source,
        optimizer: Optimizer,
        schedule: Schedule,
        *,
        folder: Path,
        settings: Settings = Settings(),
        device: torch.device | None = None,
        watcher: Watcher | None = None,
        world: World | None = None,
        evaluation: Callable[[], Evaluation] | None = None,
        samples: Callable[[int], Iterable[Sample]] | None = None,
    ) -> None:
        self.network, self.objective, self.source = network, objective, source
        self.optimizer, self.schedule, self.settings = optimizer, schedule, settings
        self.device = device or torch.device("cpu")
        self.watcher, self.world = watcher or Watcher(), world or World()
        self.evaluation, self.samples = evaluation, samples
        self.guard = SpikeGuard(settings.window, settings.sigma)
        self.loss_scale = LossScale(settings.scale_loss)
        self.checkpoints = Checkpoints(folder / "checkpoints", keep=settings.save_keep, failed=self._save_failed)
        self.progress = _Progress(best_steps=[])
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.gradients = GradientSum(self.parameters)
        self._saved_at = time.monotonic()
        self._saved_step: int | None = None
        self._last: dict[str, float] = {}
        self._last_evaluation: dict[str, float] = {}

    # --- the run

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint. Raises FormatError where it does not fit."""
        self._restore(read_checkpoint(path))
        if self.world.rank == 0:
            self.checkpoints.forget_after(self.progress.step)

    def run(self, stop: StopRequest | None = None) -> RunEnd:
        """Train to the schedule's end, or until ``stop`` is asked for; a stopped run has a checkpoint of this step."""
        stop = stop or StopRequest()
        with ExitStack() as stack:
            stack.callback(self.gradients.close)
            stack.callback(self.checkpoints.wait)  # a run that fails still has what it was writing
            stack.callback(self.network.train, self.network.training)
            stack.enter_context(_random_state_kept(self.device))
            if self.settings.checkpointing:
                stack.enter_context(layers_recomputed(self.network))
            self.network.train()
            batches = iter(self.source)
            reason = "finished"
            if self.settings.eval_first and self.progress.step == 0 and self._evaluate():
                self.save()
            while self.progress.step < self.schedule.total:
                rolled_back, stopping = self._step(batches, stop)
                if rolled_back:
                    batches = iter(self.source)
                    continue
                if stopping:
                    reason = "stopped"
                    self._event("signal", "asked to stop; saving and leaving")
                    break
                if not self._between_steps():
                    reason = "early stop"
                    break
            return self._finish(reason)

    def time_steps(self, count: int) -> None:
        """Do so many steps and leave it at that: no evaluation, no checkpoint. For measurements."""
        with _random_state_kept(self.device):
            self.network.train()
            batches = iter(self.source)
            for _ in range(count):
                self._step(batches, StopRequest())
        self.gradients.close()

    def _finish(self, reason: str) -> RunEnd:
        if reason != "stopped" and not self._due(self.settings.eval_every):
            self._evaluate()
        if self._saved_step != self.progress.step:
            self.save(background=False)
        if self.world.rank == 0:
            self.checkpoints.wait()
        self.world.wait()
        best = {} if math.isinf(self.progress.best) else {"eval_loss": self.progress.best}
        return RunEnd(self.progress.step, reason, {**self._last, **best, **self._last_evaluation}, None)

    # --- a step

    def _step(self, batches: Iterator[Any], stop: StopRequest) -> tuple[bool, bool]:
        """One optimiser step; returns whether it was rolled back, and whether the run is to stop behind it."""
        began, done = time.perf_counter(), self.progress.step
        micro = [next(batches) for _ in range(self.schedule.micro_batches(done))]
        mine = [sum(b.num_labels for b in micro), sum(getattr(b, "num_nll", 0) for b in micro),
                sum(_num_tokens(b) for b in micro), stop.asked]  # fmt: skip
        count, num_nll, tokens, stopping = self.world.sum([float(value) for value in mine])
        loss, extra = self._backward(micro, count, num_nll)
        gradients = self.gradients.finish(self.world)
        norm = global_norm(gradients) / self.loss_scale.value
        if self.world.rank == 0:
            self.watcher.on_gradients(done + 1, lambda: named(gradients, self.parameters))
        lr = self.schedule.lr(done)
        skipped = self._judge(loss, norm, count, micro)
        if skipped == "rollback":
            return True, False
        if skipped is None:
            self.guard.accept(loss, norm)
            self.loss_scale.succeeded()
            factor = clip_factor(norm, self.settings.clip) / self.loss_scale.value
            self.optimizer.step(gradients, lr, factor)
        self.progress.step += 1
        self.progress.tokens += int(tokens)
        self._tell(lr, loss, norm, int(tokens), int(count), began, skipped, extra)
        return False, bool(stopping)

    def _backward(self, micro: list[Any], count: float, num_nll: float = 0.0) -> tuple[float, dict[str, float]]:
        """Gradients of a step, and the mean loss and the objective's metrics over all processes."""
        self.gradients.begin(several=len(micro) > 1 or self.world.size > 1)
        _seed(self.settings.seed, self.progress.step, self.world.rank)
        objective = self.objective
        if isinstance(objective, OfStep):
            objective = objective.of_step(self.network, micro, self.world)
        found = Means()
        context: Callable[[], AbstractContextManager[Any]] = saving_memory(self.settings.checkpointing)
        for batch in micro:
            with context():
                loss = objective(self.network, batch.to(self.device))
            if loss.sum.requires_grad and count:
                total = loss.sum / count if loss.nll is None else loss.sum / count + loss.nll / max(num_nll, 1.0)
                (total * self.loss_scale.value).backward()
            found.add(loss, getattr(batch, "num_nll", 0))
        return found.over(self.world)

    # --- what is wrong with it

    def _judge(self, loss: float, norm: float, count: float, micro: list[Any]) -> str | None:
        """None when the step is to be made, ``rollback`` when the past was restored, else why it is left out."""
        if count == 0:
            self._event("warning", "no token of this step has a label: nothing to learn")
            return "no labels"
        if math.isfinite(loss) and not math.isfinite(norm) and self.loss_scale.overflowed():
            self._event("overflow", f"gradients overflow float16; the loss scale is now {self.loss_scale.value:g}")
            return "overflow"
        verdict = self.guard.judge(loss, norm)
        policy = self.settings.on_nonfinite if verdict == "not finite" else self.settings.on_spike
        if verdict is None or policy == "off":
            self.progress.skipped_in_a_row = 0
            return None
        where = sorted({index for batch in micro for index in batch.indices})
        scores = "" if verdict == "not finite" else " ({:.1f} and {:.1f} sigma)".format(*self.guard.scores(loss, norm))
        message = f"loss {loss:.4g}, gradient norm {norm:.4g}{scores}"
        self._event(verdict, f"{message}: {policy}", samples=where[:1000], loss=loss, grad_norm=norm)
        if policy == "stop":
            raise TrainingError(f"step {self.progress.step + 1}: {message}; safety says stop")
        if policy == "rollback" and self._roll_back():
            return "rollback"
        self.progress.skipped_in_a_row += 1
        if self.progress.skipped_in_a_row > self.settings.retries:
            raise TrainingError(
                f"step {self.progress.step + 1}: {message}; {self.progress.skipped_in_a_row} steps in a row were left "
                "out. A lower lr, a longer warm-up or other data may help"
            )
        return verdict

    def _roll_back(self) -> bool:
        """Take back weights and optimiser to the last checkpoint; the data goes on behind the bad window (PaLM)."""
        if self.world.rank == 0:
            self.checkpoints.wait()
        self.world.wait()
        path = self.checkpoints.latest()
        if path is None:
            return False
        rollbacks, source = self.progress.rollbacks + 1, self.source.state()
        if rollbacks > self.settings.retries:
            raise TrainingError(f"rolled back {rollbacks - 1} times already; a lower lr or other data may help")
        self._restore(read_checkpoint(path))
        self.progress = replace(self.progress, rollbacks=rollbacks)
        self.source.load(source)
        self._event("rollback", f"back at step {self.progress.step}, passing over the data up to here")
        return True

    # --- between steps

    def _between_steps(self) -> bool:
        """Evaluate, save, sample where it is time; False when the run is to end early."""
        step = self.progress.step
        better = self._evaluate() if self._due(self.settings.eval_every) else False
        if self.samples is not None and self._due(self.settings.sample_every) and self.world.rank == 0:
            for sample in self.samples(step):
                self.watcher.on_sample(sample)
        minutes = (time.monotonic() - self._saved_at) / 60
        late = 0 < self.settings.save_minutes <= minutes
        if better or late or self._due(self.settings.save_every):
            self.save()
        patience = self.settings.early_stop
        return not (patience and self.progress.evals_without_better >= patience)

    def _due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0

    def _evaluate(self) -> bool:
        """Returns whether a checkpoint of this step belongs to the best."""
        if self.evaluation is None:
            return False
        result, progress = self.evaluation(), self.progress
        self._last_evaluation = {f"eval_{name}": value for name, value in result.metrics.items()}
        best = result.loss < progress.best
        progress.evals_without_better = 0 if best else progress.evals_without_better + 1
        progress.best = min(progress.best, result.loss)
        if self.world.rank == 0:
            fields = (result.loss, result.perplexity, result.bits_per_byte, result.tokens, result.seconds)
            self.watcher.on_eval(EvalMetrics(progress.step, *fields, best, result.metrics))
        return self._rank_among_best(result.loss)

    def _rank_among_best(self, loss: float) -> bool:
        kept = self.progress.best_steps = sorted([*(self.progress.best_steps or []), [loss, self.progress.step]])
        del kept[self.settings.save_best :]
        self.checkpoints.kept_besides = {int(step) for _, step in kept}
        return self.progress.step in self.checkpoints.kept_besides

    # --- checkpoints

    def save(self, *, background: bool = True) -> None:
        """Write a checkpoint of now; only the first process does."""
        self._saved_at, self._saved_step = time.monotonic(), self.progress.step
        if self.world.rank != 0:
            return
        began = time.perf_counter()
        self.checkpoints.save(self.snapshot(), background=background)
        self._event("checkpoint", f"step-{self.progress.step}", seconds=time.perf_counter() - began)

    def snapshot(self) -> Snapshot:
        """Everything as it is now; tensors are not copied."""
        progress = {**self.progress.__dict__, "best": None if math.isinf(self.progress.best) else self.progress.best}
        state = {
            "progress": progress,
            "optimizer_steps": self.optimizer.steps,
            "source": self.source.state(),
            "guard": self.guard.state(),
            "loss_scale": self.loss_scale.state(),
        }
        return Snapshot(self.progress.step, self.parameters, self.optimizer.tensors(), state)

    @torch.no_grad()
    def _restore(self, saved: Snapshot) -> None:
        if odd := sorted(saved.weights.keys() ^ self.parameters.keys()):
            raise FormatError("checkpoint", odd[0], "what is trained now is not what was trained then")
        state = saved.state
        self.optimizer.load(saved.optimizer, state["optimizer_steps"])
        for name, parameter in self.parameters.items():
            parameter.copy_(saved.weights[name])
        self.source.load(state["source"])
        self.guard.load(state["guard"])
        self.loss_scale.load(state["loss_scale"])
        best = state["progress"]["best"]
        self.progress = _Progress(**{**state["progress"], "best": math.inf if best is None else best})
        self.checkpoints.kept_besides = {int(step) for _, step in self.progress.best_steps or []}
        self._saved_step = self.progress.step

    def _save_failed(self, step: int, why: str) -> None:
        self._event("warning", f"{why}; the run goes on, and the checkpoints before step {step} are whole")

    # --- telling

    def _tell(
        self,
        lr: float,
        loss: float,
        norm: float,
        tokens: int,
        count: int,
        began: float,
        skipped: str | None,
        extra: dict[str, float],
    ) -> None:
        self._last = {"loss": loss}
        if self.world.rank != 0:
            return
        seconds = time.perf_counter() - began
        if self.loss_scale.active:
            extra = {**extra, "loss_scale": self.loss_scale.value}
        progress = self.progress
        fields = (progress.step, loss, lr, norm, tokens, count, progress.tokens, seconds, skipped, extra)
        self.watcher.on_step(StepMetrics(*fields))

    def _event(self, kind: str, message: str, **data: Any) -> None:
        if self.world.rank == 0:
            self.watcher.on_event(Event(self.progress.step, kind, message, data))


def _num_tokens(batch: Any) -> int:
    parts: list[Tensor] = [part.tokens_T for part in (getattr(batch, "source", None), getattr(batch, "target", batch))
                           if part is not None]  # fmt: skip
    return sum(len(tokens_T) for tokens_T in parts)


def _seed(seed: int, step: int, rank: int) -> None:
    mixed = np.random.SeedSequence([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, step, rank])
    torch.manual_seed(int(mixed.generate_state(1, np.uint64)[0] >> np.uint64(1)))


def _random_state_kept(device: torch.device) -> AbstractContextManager[Any]:
    """torch's generators as they were, afterwards: the loop seeds them, and its host may have plans of its own."""
    devices = [device] if device.type == "cuda" else []
    return torch.random.fork_rng(devices=devices)
