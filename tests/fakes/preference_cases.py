"""Fixed pairs of answers as token ids, and the objectives that are compared with TRL on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tiny
from fakes.tiny_llm import tiny_folder
from tokenmill.formats.hf_folder import write_hf_folder

_draw = np.random.RandomState(7)


def _ids(low: int, high: int) -> list[int]:
    return _draw.randint(3, 320, _draw.randint(low, high)).tolist()


ROWS: list[dict[str, Any]] = [
    {"prompt": _ids(2, 9), "chosen": _ids(2, 12), "rejected": _ids(2, 12), "margin": 0.25 * i, "good": i % 3 != 1}
    for i in range(5)
]

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # label: objective, our values, TRL's
    "dpo": ("dpo", {"beta": 0.1}, {"beta": 0.1}),
    "dpo-hinge": ("dpo", {"beta": 0.3, "loss": "hinge"}, {"beta": 0.3, "loss_type": ["hinge"]}),
    "dpo-ipo": ("dpo", {"beta": 0.2, "loss": "ipo"}, {"beta": 0.2, "loss_type": ["ipo"]}),
    "dpo-robust": (
        "dpo",
        {"beta": 0.2, "loss": "robust", "label_smoothing": 0.1},
        {"beta": 0.2, "loss_type": ["robust"], "label_smoothing": 0.1},
    ),
    "dpo-sft": (
        "dpo",
        {"beta": 0.1, "sft_weight": 0.5},
        {"beta": 0.1, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    ),
    "simpo": (
        "simpo",
        {"beta": 2.0, "gamma": 1.0},
        {"beta": 2.0, "simpo_gamma": 1.0, "loss_type": "simpo", "cpo_alpha": 0.0},
    ),
    "simpo-smooth-sft": (
        "simpo",
        {"beta": 2.5, "gamma": 0.5, "label_smoothing": 0.1, "sft_weight": 0.7},
        {"beta": 2.5, "simpo_gamma": 0.5, "loss_type": "simpo", "cpo_alpha": 0.7, "label_smoothing": 0.1},
    ),
    "orpo": ("orpo", {"beta": 0.1}, {"beta": 0.1}),
    "kto": (
        "kto",
        {"beta": 0.1, "desirable_weight": 1.2, "undesirable_weight": 0.8},
        {"beta": 0.1, "desirable_weight": 1.2, "undesirable_weight": 0.8, "per_device_train_batch_size": 2},
    ),
    "reward": ("reward", {"center": 0.01}, {"center_rewards_coefficient": 0.01}),
}


def _changed(folder: Path, change: dict[str, Any], scale: float, more: dict[str, torch.Tensor]) -> Path:
    tiny_folder(folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = [(n, t if "norm" in n else t * scale) for n, t in tiny.weights(config) if not (more and "lm_head" in n)]
    write_hf_folder(folder, {**config, **change}, [*tensors, *more.items()])
    return folder


def reference_folder(folder: Path) -> Path:
    """The tiny model with other weights: what the policy is compared with."""
    return _changed(folder, {}, 0.9, {})


def scorer_folder(folder: Path) -> Path:
    """The tiny model as a reward model."""
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "pad_token_id": 0}
    head = torch.from_numpy(np.random.RandomState(1).standard_normal((1, 48)).astype(np.float32) * 0.3)
    change = {"architectures": ["LlamaForSequenceClassification"], **labels}
    return _changed(folder, change, 1.0, {"score.weight": head})
