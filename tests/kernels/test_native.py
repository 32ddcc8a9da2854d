"""The native kernels against torch: every packed format on every instruction set of this machine, and whole passes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from tokenmill.core.errors import UsageError
from tokenmill.engine.engine import Engine
from tokenmill.engine.generate import generate
from tokenmill.engine.native_pass import NativePass
from tokenmill.engine.request import Request
from tokenmill.engine.runner import TorchPass
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.formats import open_tensors
from tokenmill.models.load import model_from_file
from tokenmill.nn.context import Packed as PackedContext
from tokenmill.nn.decoder import Decoder
from tokenmill.ops import native as ops_native
from tokenmill.ops.batch_invariant import batch_invariant
from tokenmill.ops.native import native
from tokenmill.ops.packed import QUANTISED, Packed, packed_linear
from tokenmill.ops.program import CannotRecord

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels are not here")


def sets() -> list[str]:
    """The instruction sets that this machine has."""
    here = native()
    found = []
    for name in ("avx2", "avx512", "amx", "neon") if here else ():
        with suppress(ValueError):
            found.append(here.module.kernels(name).name)
    return found


# Where a format's blocks have half-precision numbers: random bytes there would be NaN
HALVES = {
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


def random_blocks(kind: str, rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor's bytes, and its values by the gguf package."""
    rng = np.random.default_rng(seed)
    quant = gguf.GGMLQuantizationType[kind]
    weights, size = gguf.GGML_QUANT_SIZES[quant]
    raw = rng.integers(0, 256, (rows, columns // weights, size), dtype=np.uint8)
    for at in HALVES.get(kind, (0,)):
        scales = rng.uniform(-0.02, 0.02, raw.shape[:2]).astype(np.float16)
        raw[:, :, at : at + 2] = scales[..., None].view(np.uint8).reshape(*raw.shape[:2], 2)
    raw = raw.reshape(rows, -1)
    return torch.from_numpy(raw), torch.from_numpy(gguf.quants.dequantize(raw, quant))


def multiply(isa: str, packed: Packed, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    here = native()
    assert here is not None
    y = torch.full((len(x), packed.shape[0]), torch.nan)
    program = here.module.Program(len(x))
    program.linear(x.data_ptr(), packed.handle, 0 if bias is None else bias.data_ptr(), y.data_ptr())
    program.run(here.pool, here.module.kernels(isa), len(x), False)
    return y


@pytest.mark.parametrize("kind", QUANTISED)
def test_blocks_unpack_to_what_gguf_says(kind: str) -> None:
    raw, values = random_blocks(kind, 37, 512)
    assert torch.equal(Packed.from_blocks(kind, 512, raw).dense(), values)


@pytest.mark.parametrize("isa", sets())
@pytest.mark.parametrize("kind", QUANTISED)
def test_products_of_blocks(kind: str, isa: str) -> None:
    """Inputs are rounded to 16 bits, so little is lost; matrix tiles, which many rows meet, round them to bfloat16."""
    raw, values = random_blocks(kind, 37, 512)
    packed = Packed.from_blocks(kind, 512, raw)
    for rows in (1, 2, 3, 5, 8, 33):
        x = torch.randn(rows, 512, generator=torch.Generator().manual_seed(rows))
        x[:, 7] *= 1000  # a large input makes its neighbours' steps large, too: within a block, no further
        bias = torch.arange(37.0)
        y = multiply(isa, packed, x, bias)
        exact = (x.double() @ values.double().T + bias).float()
        error = (y - exact).norm() / (exact - bias).norm()
        assert error < (4e-3 if isa == "amx" and rows >= 12 else 2e-4), error
        if rows < 12:
            blocks = x.double().unflatten(-1, (-1, 32))
            scale = blocks.abs().amax(-1, keepdim=True) / (127 * 256)
            rounded = (blocks / scale).round() * scale
            expected = (rounded.flatten(1) @ values.double().T + bias).float()
            spread = exact.abs().max().item()
            torch.testing.assert_close(y, expected, rtol=1e-6, atol=3e-6 * spread)


@pytest.mark.parametrize("isa", sets())
def test_the_largest_codes_and_inputs_do_not_overflow(isa: str) -> None:
    """Every product of a block at its limit and of one sign: 32 times 255 times 127 * 256, less the offset."""
    weight = torch.full((16, 64), 255, dtype=torch.uint8)
    packed = Packed.from_codes(weight, torch.ones(16, 1), None, 8)
    low = Packed.from_codes(torch.zeros_like(weight), torch.ones(16, 1), None, 8)
    for sign in (1.0, -1.0):
        x = torch.full((3, 64), sign)
        torch.testing.assert_close(multiply(isa, packed, x), torch.full((3, 16), sign * 127 * 64))
        torch.testing.assert_close(multiply(isa, low, x), torch.full((3, 16), sign * -128 * 64))


@pytest.mark.parametrize("isa", sets())
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 20), st.sampled_from([torch.float32, torch.bfloat16]))
def test_products_of_floats_of_any_shape(isa: str, n: int, k: int, rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(n * 1000 + k)
    weight = torch.randn(n, k, generator=generator).to(dtype)
    x = torch.randn(rows, k, generator=generator)
    y, exact = multiply(isa, Packed.from_floats(weight), x), x @ weight.float().T
    tiles = isa == "amx" and rows >= 12 and dtype == torch.bfloat16  # whose inputs are rounded to bfloat16
    torch.testing.assert_close(y, exact, rtol=0.05 if tiles else 1e-4, atol=0.1 if tiles else 1e-4)


@pytest.mark.parametrize("isa", sets())
def test_extreme_inputs(isa: str) -> None:
    raw, values = random_blocks("Q4_0", 16, 64)
    packed = Packed.from_blocks("Q4_0", 64, raw)
    x = torch.zeros(4, 64)
    x[1], x[2, 5], x[3, 40] = 1e30, 1e-38, torch.nan
    y = multiply(isa, packed, x)
    assert torch.equal(y[0], torch.zeros(16))
    torch.testing.assert_close(y[1], x[1] @ values.T, rtol=1e-3, atol=1e26)
    assert y[2].isfinite().all()
    assert y[3].isnan().all(), "a number that is none must not vanish"


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 128), (8, 64), (8, 256)])
def test_codes_with_scales(bits: int, group: int) -> None:
    """The layouts of GPTQ and AWQ (4 bits, zero points as minima) and INT8 (a scale a row)."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 1 << bits, (20, 256), generator=generator)
    scales = torch.rand(20, 256 // group, generator=generator).half()
    minima = -scales * 7 if bits == 4 else None
    packed = Packed.from_codes(codes, scales, minima, bits)
    zero = torch.full_like(scales, -128).float() * scales.float() if minima is None else minima.float()
    expected = codes.float().unflatten(1, (-1, group)) * scales.float()[..., None] + zero[..., None]
    torch.testing.assert_close(packed.dense(), expected.flatten(1), rtol=1e-6, atol=1e-4)


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(UsageError, match="groups of 48"):
        Packed.from_codes(torch.zeros(2, 96), torch.zeros(2, 2), torch.zeros(2, 2), 4)
    with pytest.raises(IndexError, match="0 … 1"):
        Packed.from_floats(torch.zeros(2, 32)).rows(torch.tensor([2]))


# Heads of 16 features, so that every family can be recorded
SIXTEEN = {
    name: config | ({"n_embd": 64} if name == "gpt2" else {"head_dim": 16})
    for name, config in tiny.FAMILIES.items()
    # these take hidden_size / heads; mixtures of experts are not packed
    if name not in ("phi3", "starcoder2", "granite", "mixtral", "qwen3_moe")
} | {name: tiny.FAMILIES[name] | {"hidden_size": 64} for name in ("starcoder2", "granite")}


@pytest.fixture(scope="module", params=list(SIXTEEN))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(SIXTEEN[request.param], tmp_path_factory.mktemp("model"))


def load(folder: Path, *, pack: bool) -> Decoder:
    return model_from_file(open_tensors(folder), pack=pack).decoder


def asked() -> list[Request]:
    """Mixed lengths with a shared beginning longer than a block, greedy and seeded."""
    shared = [n % 90 for n in range(40)]
    prompts = [[5, 1, 17], [9], [*shared, 3], list(range(20, 31)), [*shared, 4, 4], [5, 1, 17]]
    return [
        Request(prompt, SamplingParams(temperature=0.0 if n % 2 else 0.9, max_tokens=28 + n), seed=n)
        for n, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize(
    "setting",
    [{}, {"max_tokens_per_step": 7}, {"num_blocks": 4}, {"deterministic": True}],
    ids=["roomy", "chunked", "preempted", "deterministic"],
)
def test_a_recorded_pass_answers_like_the_plain_loop(folder: Path, setting: dict[str, int]) -> None:
    """float32 weights stay float32, so the tokens are the same."""
    expected, got = asked(), asked()
    list(generate(load(folder, pack=False), expected))
    engine = Engine(load(folder, pack=True), **{"num_blocks": 32, **setting})
    assert isinstance(engine._passes, NativePass)
    list(engine.run(got))
    assert [r.output for r in got] == [r.output for r in expected]
    if "num_blocks" in setting:
        assert engine.scheduler.preemptions > 0


@pytest.mark.parametrize("name", ["mixtral", "phi3"])
def test_what_has_no_kernel_runs_on_torch(name: str, tmp_path: Path) -> None:
    """Experts are not packed; angles that depend on the length, or heads of 12 features, are not recorded."""
    folder = tiny.write(tiny.FAMILIES[name], tmp_path)
    expected, got = asked(), asked()
    list(generate(load(folder, pack=False), expected))
    engine = Engine(load(folder, pack=True))
    assert isinstance(engine._passes, TorchPass)
    list(engine.run(got))
    assert [r.output for r in got] == [r.output for r in expected]


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_bfloat16_and_quantised_passes_are_near(name: str, tmp_path: Path) -> None:
    model = load(tiny.write(SIXTEEN[name], tmp_path), pack=False)
    tokens = torch.tensor(tiny.PROMPTS[0])
    plain = model(tokens, PackedContext([len(tokens)]))
    packed = load(tiny.write({**SIXTEEN[name], "dtype": "bfloat16"}, tmp_path / "b"), pack=True)
    engine = Engine(packed, num_blocks=8)
    request = Request(tiny.PROMPTS[0], SamplingParams(max_tokens=1, prompt_logprobs=1))
    list(engine.run([request]))
    wanted = torch.log_softmax(plain, -1)[torch.arange(len(tokens) - 1), tokens[1:]]
    got = torch.tensor([entry.logprob for entry in request.prompt_logprobs[1:] if entry])
    assert (got - wanted).abs().max() < 0.1


def test_deterministic_logits_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    model = load(tiny.write(SIXTEEN["qwen3"], tmp_path), pack=True)
    alone, crowded = asked()[2], asked()
    for request in (alone, *crowded):
        request.params = SamplingParams(temperature=0.0, max_tokens=8, logprobs=5)
    first = list(Engine(model, num_blocks=32, deterministic=True).run([alone]))
    engine = Engine(model, num_blocks=32, deterministic=True, max_tokens_per_step=9)
    second = [step for step in engine.run(crowded) if step.request is crowded[2]]
    assert [s.logprobs for s in first] == [s.logprobs for s in second]


@pytest.mark.parametrize("isa", sets())
def test_rows_do_not_see_each_other(isa: str) -> None:
    """What --deterministic rests on: a row's product is the same bits alone and among others."""
    raw, _ = random_blocks("Q4_1", 48, 256)
    packed = Packed.from_blocks("Q4_1", 256, raw)
    x = torch.randn(21, 256, generator=torch.Generator().manual_seed(1))
    with batch_invariant():
        together, alone = packed_linear(x, packed), torch.cat([packed_linear(row[None], packed) for row in x])
    assert torch.equal(together, alone)


def test_a_lower_set_can_be_forced() -> None:
    code = "from tokenmill.ops.native import native, why_not; n = native(); print(n.isa if n else why_not())"
    for wanted, said in [(sets()[0], sets()[0]), ("reference", "TOKENMILL_ISA=reference")]:
        environment = {**os.environ, "TOKENMILL_ISA": wanted}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert said in done.stdout
    environment = {**os.environ, "TOKENMILL_ISA": "sse9"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "sse9" in done.stderr
    assert "reference" in done.stderr


def test_a_configuration_beyond_the_kernels_memory_stays_on_torch(tmp_path: Path) -> None:
    """Kernels do not check: 65 heads that share a key head would write past their scratch."""
    config = tiny.FAMILIES["llama"] | {"num_attention_heads": 65, "num_key_value_heads": 1, "head_dim": 16}
    with pytest.raises(CannotRecord, match="65 heads over 1"):
        NativePass(load(tiny.write(config, tmp_path), pack=True), 4, 32)


def test_adapters_keep_a_model_on_torch_and_tokens_are_checked(tmp_path: Path) -> None:
    model = load(tiny.write(SIXTEEN["llama"], tmp_path), pack=True)
    passes = NativePass(model, 4, 32)
    beyond = SimpleNamespace(tokens=lambda start, end: [97] * (end - start), blocks=[0])
    with pytest.raises(IndexError, match="vocabulary"):
        passes.hidden([SimpleNamespace(sequence=beyond, start=0, count=2)])  # type: ignore[list-item]
    model.layers[0].attn.q.adapters = torch.nn.ModuleDict()
    assert isinstance(Engine(model, num_blocks=4)._passes, TorchPass)


def test_kernels_of_another_version_are_told_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever pulls without building again gets torch and a sentence, not a method that is not there."""
    monkeypatch.setattr(ops_native, "INTERFACE", 10**6)
    ops_native.why_not.cache_clear()
    try:
        assert "install tokenmill again" in (ops_native.why_not() or "")
    finally:
        ops_native.why_not.cache_clear()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_the_checks_for_other_machines_compile() -> None:
    """``make kernels-arm`` runs them under emulation, seldom."""
    native_folder = Path(__file__).parents[2] / "native"
    words = [
        "g++",
        "-std=c++20",
        "-fsyntax-only",
        f"-I{native_folder / 'src'}",
        str(native_folder / "test/kernels.cpp"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
