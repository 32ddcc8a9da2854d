"""Fixed completions as token ids, and the policy losses that are compared with TRL on them."""

from __future__ import annotations

from typing import Any

import numpy as np

LONGEST = 12
_draw = np.random.RandomState(11)


def _ids(low: int, high: int) -> list[int]:
    return _draw.randint(3, 320, _draw.randint(low, high)).tolist()


ROWS: list[dict[str, Any]] = [
    {"prompt": _ids(2, 9), "completion": _ids(2, LONGEST), "advantage": float(_draw.randn())} for _ in range(6)
]
TOKENS = sum(len(row["completion"]) for row in ROWS)
NOISE = {name: (_draw.randn(TOKENS) * size).tolist() for name, size in (("old", 0.3), ("reference", 0.5))}
"""What is added to the model's log-probabilities: some ratios are clipped then, on both sides."""
SAMPLER = (_draw.randn(TOKENS) * 0.6).tolist()
"""What the engine's log-probabilities are below those of the trainer."""

REWARDS = [[1.0, 0.0, 0.5, 0.25], [0.0, 0.0, 0.0, 0.0], [2.0, float("nan"), -1.0, 0.5], [3.0, 3.0, float("nan"), 1.0]]

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # label: objective, our values, TRL's
    "grpo": ("grpo", {}, {"loss_type": "grpo"}),
    "grpo-first-step": ("grpo", {"first": True}, {"loss_type": "grpo"}),
    "grpo-kl": ("grpo", {"beta": 0.05}, {"loss_type": "grpo", "beta": 0.05}),
    "grpo-temperature": ("grpo", {"temperature": 0.7}, {"loss_type": "grpo", "temperature": 0.7}),
    "grpo-truncated": ("grpo", {"correction": "token_truncate", "correction_cap": 1.5}, {"loss_type": "grpo"}),
    "bnpo": ("grpo", {"loss": "bnpo"}, {"loss_type": "bnpo"}),
    "dr_grpo": ("grpo", {"loss": "dr_grpo"}, {"loss_type": "dr_grpo"}),
    "dapo": ("grpo", {"loss": "dapo"}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "gspo": (
        "grpo",
        {"loss": "gspo"},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    ),
    "cispo": ("grpo", {"loss": "cispo", "clip_high": 1.2}, {"loss_type": "cispo", "epsilon_high": 1.2}),
    "rloo": ("rloo", {}, {}),
}
