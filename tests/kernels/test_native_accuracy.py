"""The default model on the kernels against float32 on torch: perplexity, and a text one token at a time.

``benchmarks/accuracy.py`` measures more text and every type; docs/performance.md has its figures.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_native import sets

from tokenmill import LLM
from tokenmill.nn.decoder import Decoder
from tokenmill.ops.native import native
from tokenmill.ops.registry import use_backend

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels are not here")
ROOT = Path(__file__).parents[2]
CTX, STEPS = 192, 24


@pytest.fixture(scope="module")
def accuracy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_accuracy", ROOT / "benchmarks" / "accuracy.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def read(default_gguf: Path) -> tuple[Decoder, list[int]]:
    llm = LLM(default_gguf)
    return llm.model, llm.tokenizer.encode((ROOT / "LICENSE").read_text(encoding="utf-8"))[:CTX]


@pytest.fixture(scope="module")
def exact(accuracy: ModuleType, read: tuple[Decoder, list[int]]) -> tuple[float, torch.Tensor]:
    model, ids = read
    with use_backend(packed_linear="reference"):
        return accuracy.window_perplexity(model, ids, CTX), accuracy.at_once(model, ids[:STEPS])


@pytest.mark.parametrize("isa", sets())
def test_kernels_read_as_float32_does(
    accuracy: ModuleType, isa: str, read: tuple[Decoder, list[int]], exact: tuple[float, torch.Tensor]
) -> None:
    """Inputs of 8 bits would be 0.5 % off, and 0.08 from token to token (docs/performance.md)."""
    model, ids = read
    with accuracy.instruction_set(isa) as here:
        assert here
        near, steps = accuracy.window_perplexity(model, ids, CTX), accuracy.one_by_one(model, ids[:STEPS])
    assert near == pytest.approx(exact[0], rel=3e-3 if isa == "amx" else 2e-4)
    assert (steps - exact[1]).abs().mean() < 0.03  # what is left comes from the bfloat16 cache
