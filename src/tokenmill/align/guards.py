"""Alarms for a run that learns from rewards: signs that it found a way to cheat, or falls apart.

A watcher of the loop's metrics: what it sees it says as an event of kind ``alarm`` (log, screen, report), or it ends
the run. Where an alarm is relative, the first steps of the run are the measure of what follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tokenmill.config.rewards import GuardConfig
from tokenmill.train.loop import TrainingError
from tokenmill.train.watch_protocol import Event, RunStart, StepMetrics, Watcher


@dataclass
class _Seen:
    """What the guard remembers."""

    first: dict[str, list[float]] = field(default_factory=dict)
    """A metric's first values, as many as the guard is patient."""
    in_a_row: dict[str, int] = field(default_factory=dict)

    def start(self, name: str) -> float | None:
        """The mean of the first values; None before they are together, or where there are none."""
        values = self.first.get(name)
        return sum(values) / len(values) if values else None


class Guards(Watcher):
    """See :class:`~tokenmill.config.rewards.GuardConfig`.

    Args:
        held_out: names of the rewards that are only measured.
        tell: where events go: the other watchers of the run.
    """

    def __init__(self, config: GuardConfig, held_out: Iterable[str], tell: Callable[[Event], None]) -> None:
        self.config, self.held_out, self.tell = config, tuple(held_out), tell
        self._seen = _Seen()
        self._steps = 0

    def on_start(self, run: RunStart) -> None:
        """A run that goes on is measured by its steps from there."""
        self._seen, self._steps = _Seen(), 0

    def on_step(self, metrics: StepMetrics) -> None:
        """TrainingError where an alarm is to end the run."""
        extra = metrics.extra
        self._steps += 1
        alarms = dict(self._alarms(extra))
        if self._steps <= self.config.patience:
            for name, value in extra.items():
                self._seen.first.setdefault(name, []).append(value)
        for name in [*self._seen.in_a_row]:
            if name not in alarms:
                del self._seen.in_a_row[name]
        for name, message in alarms.items():
            count = self._seen.in_a_row[name] = self._seen.in_a_row.get(name, 0) + 1
            if count == self.config.patience:  # once, until it has been well again
                self._raise_alarm(metrics.step, name, message)

    def _raise_alarm(self, step: int, name: str, message: str) -> None:
        text = f"{name}: {message}, {self.config.patience} steps in a row"
        self.tell(Event(step, "alarm", text, {"alarm": name}))
        if self.config.action == "stop":
            raise TrainingError(
                f"step {step}: {text}; guards.action says stop. The last checkpoint can be resumed with other "
                "rewards, a lower lr or a larger weight of the reference"
            )

    def _alarms(self, now: Mapping[str, float]) -> Iterable[tuple[str, str]]:
        """Everything that is wrong at this step: name and words."""
        config = self.config
        length, began = now.get("completions/length"), self._start("completions/length")
        if config.longer and length is not None and began and length > config.longer * began:
            yield "length", f"answers have {length:.0f} tokens, {length / began:.1f} times those of the beginning"
        limits = (
            ("repetition", "completions/repetition", config.repetition, "of an answer's 4-grams are repeats"),
            ("kl", "kl", config.kl, "nats a token from the reference"),
            ("excluded", "rewards/excluded", config.excluded, "of the answers could not be scored"),
        )
        for name, key, most, words in limits:
            if most and now.get(key, 0.0) > most:
                yield name, f"{now[key]:.3g} {words}, more than {most:g}"
        entropy = now.get("entropy")
        if config.entropy and entropy is not None and entropy < config.entropy:
            yield "entropy", f"{entropy:.3g} nats a token, less than {config.entropy:g}: it says only one thing"
        if any(not math.isfinite(value) for name, value in now.items() if name in ("reward", "kl", "entropy")):
            yield "diverged", "reward, kl or entropy is no number"
        yield from self._cheating(now)

    def _cheating(self, now: Mapping[str, float]) -> Iterable[tuple[str, str]]:
        """What is learned from rises, what is only measured falls."""
        reward, began = now.get("reward"), self._start("reward")
        if not self.config.held_out or reward is None or began is None or reward <= began:
            return
        for name in self.held_out:
            value, first = now.get(f"rewards/{name}/mean"), self._start(f"rewards/{name}/mean")
            if value is not None and first is not None and first - value > self.config.held_out:
                yield (
                    f"held-out {name}",
                    f"fell from {first:.3g} to {value:.3g} while the reward rose from {began:.3g} to {reward:.3g}",
                )

    def _start(self, name: str) -> float | None:
        return self._seen.start(name) if self._steps > self.config.patience else None
