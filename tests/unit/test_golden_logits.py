"""Every family against stored logits of transformers 5.23, for where transformers is not installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from tokenmill.models import load_model
from tokenmill.nn.context import Packed


@pytest.mark.parametrize("name", list(tiny.FAMILIES))
def test_golden_logits(name: str, tmp_path: Path) -> None:
    golden = np.load(tiny.GOLDEN / f"{name}.npz", allow_pickle=False)
    decoder = load_model(tiny.write(tiny.FAMILIES[name], tmp_path), dtype="float32").decoder
    prompts = tiny.PROMPTS[:3]
    with torch.inference_mode():
        rows = decoder(tiny.packed(prompts), Packed([len(p) for p in prompts])).split([len(p) for p in prompts])
    for number, row in enumerate(rows):
        expected = golden[str(number)]
        assert np.abs(row.numpy() - expected).max() < 1e-4 * np.abs(expected).max()
