"""How keys and values are kept: each choice is honoured by the kernels and by torch, or refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from tokenmill.core.errors import UsageError
from tokenmill.engine.engine import Engine, cached_bytes
from tokenmill.engine.native_pass import NativePass
from tokenmill.engine.request import Request
from tokenmill.engine.runner import TorchPass
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.formats import open_tensors
from tokenmill.models.load import model_from_file
from tokenmill.nn.decoder import Decoder
from tokenmill.ops.native import native

needs_kernels = pytest.mark.skipif(native() is None, reason="the native kernels are not here")
PROMPT = [n % 90 for n in range(45)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tiny.FAMILIES["llama"] | {"head_dim": 16}, tmp_path_factory.mktemp("model"))


def load(folder: Path, *, pack: bool) -> Decoder:
    return model_from_file(open_tensors(folder), pack=pack).decoder


def logprobs(engine: Engine, prompt: list[int] = PROMPT) -> torch.Tensor:
    """Of the prompt's tokens, read in chunks, whatever would have been chosen."""
    request = Request(prompt, SamplingParams(max_tokens=1, prompt_logprobs=1))
    list(engine.run([request]))
    assert request.error is None
    return torch.tensor([entry.logprob for entry in request.prompt_logprobs[1:] if entry])


@needs_kernels
def test_the_kernels_honour_each_type(folder: Path) -> None:
    model = load(folder, pack=True)
    exact = logprobs(Engine(load(folder, pack=False), num_blocks=8))
    found, sizes = {}, {}
    for name in ("auto", "fp32", "bf16", "int8"):
        engine = Engine(model, num_blocks=8, max_tokens_per_step=3, kv_cache_dtype=name)  # by rows; in tiles below
        assert isinstance(engine._passes, NativePass)
        found[name] = (logprobs(engine) - exact).abs().max().item()
        whole = (logprobs(Engine(model, num_blocks=8, kv_cache_dtype=name)) - exact).abs().max().item()
        assert whole == pytest.approx(found[name], abs=0.02)
        sizes[name] = cached_bytes(model, torch.int8 if name == "int8" else torch.bfloat16)
    assert found["auto"] == found["fp32"] < 1e-4
    assert 1e-4 < found["bf16"] < 0.02
    assert 1e-4 < found["int8"] < 0.05
    assert sizes["int8"] == 1.25  # a scale of 4 bytes for 16 numbers


def test_torch_keeps_what_it_is_told(folder: Path) -> None:
    model = load(folder, pack=False)
    exact = logprobs(Engine(model, num_blocks=8))
    engine = Engine(model, num_blocks=8, max_tokens_per_step=9, kv_cache_dtype="bf16")
    assert isinstance(engine._passes, TorchPass)
    assert engine._passes.layers[0][0].rows_BPKD.dtype == torch.bfloat16
    assert 1e-4 < (logprobs(engine) - exact).abs().max() < 0.02
    assert (logprobs(Engine(model, num_blocks=8, kv_cache_dtype="fp32")) - exact).abs().max() < 1e-5


def test_what_cannot_be_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="int8 cache needs the native kernels"):
        Engine(load(folder, pack=False), num_blocks=8, kv_cache_dtype="int8")
    with pytest.raises(UsageError, match=r"'int4' is not known \(did you mean 'int8'"):
        Engine(load(folder, pack=False), num_blocks=8, kv_cache_dtype="int4")


@needs_kernels
def test_a_packed_model_without_a_recorded_pass_is_refused_too(tmp_path: Path) -> None:
    """Heads of 12 features have no kernel: the reason is told."""
    packed = load(tiny.write(tiny.FAMILIES["phi3"], tmp_path), pack=True)
    with pytest.raises(UsageError, match="runs on torch: "):
        Engine(packed, num_blocks=8, kv_cache_dtype="int8")
