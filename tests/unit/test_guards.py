"""Alarms of runs that learn from rewards: each on planted curves, none on a healthy one."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from tokenmill.align.guards import Guards
from tokenmill.config.rewards import GuardConfig
from tokenmill.train.loop import TrainingError
from tokenmill.train.watch_protocol import Event, RunStart, StepMetrics

HEALTHY = {
    "reward": 0.5, "kl": 0.02, "entropy": 0.3, "rewards/excluded": 0.0, "rewards/honest/mean": 0.5,
    "completions/length": 20.0, "completions/repetition": 0.05,
}  # fmt: skip


def alarms(steps: list[dict[str, float]], **config: object) -> list[str]:
    """What is said of these steps, which come behind three healthy ones; ``step: name``."""
    told: list[Event] = []
    guards = Guards(GuardConfig.model_validate({"patience": 3, **config}), ["honest"], told.append)
    guards.on_start(RunStart(Path(), None, nn.Identity(), 0, 0, 1, 1, 1))
    for number, extra in enumerate([HEALTHY] * 3 + [{**HEALTHY, **step} for step in steps], 1):
        guards.on_step(StepMetrics(number, 0.0, 0.0, 0.0, 1, 1, 1, 1.0, None, extra))
    assert all(event.kind == "alarm" for event in told)
    return [f"{event.step}: {event.data['alarm']}" for event in told]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("length", {"completions/length": 61.0}),
        ("repetition", {"completions/repetition": 0.6}),
        ("kl", {"kl": 0.2}),
        ("entropy", {"entropy": 0.001}),
        ("excluded", {"rewards/excluded": 0.6}),
        ("diverged", {"reward": float("nan")}),
        ("held-out honest", {"reward": 0.9, "rewards/honest/mean": 0.3}),
    ],
)
def test_an_alarm_needs_patience_and_is_given_once(name: str, step: dict[str, float]) -> None:
    assert alarms([step] * 2, kl=0.1) == []
    assert alarms([step] * 9, kl=0.1) == [f"6: {name}"]
    assert alarms([step, {}] * 9, kl=0.1) == []
    assert alarms([*[step] * 3, {}, *[step] * 3], kl=0.1) == [f"6: {name}", f"10: {name}"]


def test_a_healthy_run_is_left_alone() -> None:
    rising = [
        {"reward": 0.5 + 0.05 * n, "rewards/honest/mean": 0.5 + 0.04 * n, "entropy": 0.3 - 0.02 * n} for n in range(9)
    ]
    assert alarms(rising, kl=0.1) == []
    # both fall: that is no cheating
    assert alarms([{"reward": 0.2, "rewards/honest/mean": 0.1}] * 9) == []


def test_an_alarm_may_end_the_run() -> None:
    with pytest.raises(TrainingError, match=r"step 6: kl: 0\.2 nats"):
        alarms([{"kl": 0.2}] * 5, kl=0.1, action="stop")


def test_alarms_are_switched_off_with_0() -> None:
    broken = {
        "completions/length": 1e4,
        "completions/repetition": 1.0,
        "kl": 9.0,
        "entropy": 0.0,
        "rewards/excluded": 1.0,
    }
    off = dict.fromkeys(("longer", "repetition", "kl", "entropy", "excluded", "held_out"), 0.0)
    assert alarms([{**broken, "reward": 1.0, "rewards/honest/mean": 0.0}] * 5, **off) == []
