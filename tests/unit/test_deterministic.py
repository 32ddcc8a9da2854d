"""A deterministic engine: bitwise the same logits whatever else is in the batch, however the prompt was cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from tokenmill.core.errors import UsageError
from tokenmill.engine import engine as engine_module
from tokenmill.engine.engine import Engine
from tokenmill.engine.generate import generate
from tokenmill.engine.request import Request
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.models import load_model
from tokenmill.nn.decoder import Decoder
from tokenmill.nn.linear import LinearLayer
from tokenmill.ops import attention, batch_invariant, linear, norm
from tokenmill.ops.batch_invariant import batch_invariant as invariant

FAMILIES = ["llama", "mistral", "qwen3", "gemma2", "phi3", "gpt2", "starcoder2", "mixtral"]
ASKED = [*range(30, 70), 5, 6]
OTHERS = [[9], list(range(20, 57)), ASKED[:40], [5, 1, 17], list(range(3, 90))]
SETTINGS: dict[str, dict[str, Any]] = {
    "alone": {},
    "with others": {},
    "with others, in chunks": {"max_tokens_per_step": 7},
    "with others, preempted": {"prefix_caching": False, "max_tokens_per_step": 40},
    "in chunks, no prefix cache": {"max_tokens_per_step": 11, "prefix_caching": False},
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tiny.write(tiny.FAMILIES[request.param], tmp_path_factory.mktemp("model"))
    return load_model(folder, dtype="bfloat16" if request.param == "qwen3" else "float32").decoder


def logits(model: Decoder, setting: str, monkeypatch: pytest.MonkeyPatch, *, deterministic: bool) -> torch.Tensor:
    """The logits of every token of one answer, [tokens, V]."""
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    request, seen = Request(list(ASKED), params, priority=1), []
    real = engine_module.run

    def recording(model: Decoder, cache: Any, work: list[Any]) -> torch.Tensor:
        rows = real(model, cache, work)
        for piece, row in zip([piece for piece in work if piece.last], rows, strict=True):
            if piece.sequence.request is request:
                seen.append(row)
        return rows

    monkeypatch.setattr(engine_module, "run", recording)
    options = {"num_blocks": 256, "block_size": 4, **SETTINGS[setting]}
    engine = Engine(model, deterministic=deterministic, **options)
    others = [Request(list(prompt), params) for prompt in OTHERS] if "others" in setting else []
    for _ in engine.run([request, *others]):
        mine = [s for s in engine.scheduler.running if s.request is request]
        if "preempted" in setting and mine and len(request.output) == 5 and not engine.scheduler.preemptions:
            engine.scheduler._preempt(mine[0])
    engine.check_idle()
    assert engine.scheduler.preemptions == ("preempted" in setting)
    assert len(seen) == 12
    return torch.stack(seen)


@pytest.mark.parametrize("setting", list(SETTINGS)[1:])
def test_logits_are_the_same_to_the_last_bit(model: Decoder, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = logits(model, "alone", monkeypatch, deterministic=True)
    assert torch.equal(logits(model, setting, monkeypatch, deterministic=True), alone)


def test_the_deterministic_way_computes_the_same_function(model: Decoder) -> None:
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, prompt_logprobs=0)
    mine, plain = Request(list(ASKED), params), Request(list(ASKED), params)
    list(Engine(model, num_blocks=64, deterministic=True).run([mine]))
    list(generate(model, [plain]))
    for got, wanted in zip(mine.prompt_logprobs[1:], plain.prompt_logprobs[1:], strict=True):
        assert got is not None
        assert wanted is not None
        assert got.logprob == pytest.approx(wanted.logprob, abs=0.1 if model.dtype == torch.bfloat16 else 2e-5)


def test_without_it_the_batch_shows(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the test above proves something: on this machine the usual way does differ in the last bits."""
    model = load_model(tiny.write(tiny.FAMILIES["llama"], tmp_path_factory.mktemp("model")), dtype="float32").decoder
    usual = [logits(model, setting, monkeypatch, deterministic=False) for setting in SETTINGS]
    assert not all(torch.equal(one, usual[0]) for one in usual)


@pytest.mark.parametrize("name", list(batch_invariant._ELEMENTWISE), ids=lambda op: op.name)
def test_an_elements_place_does_not_matter(name: Any) -> None:
    x = torch.randn(300, 83, generator=torch.Generator().manual_seed(0))
    rest = {"gated_activation": (x * 2, "silu"), "plain_activation": ("gelu",), "soft_cap": (3.0,)}.get(name.name, ())
    with invariant():
        whole = name(x, *rest)
        rows = [
            name(x[i : i + 1], *(r[i : i + 1] if isinstance(r, torch.Tensor) else r for r in rest)) for i in (0, 7, 299)
        ]
    for i, row in zip((0, 7, 299), rows, strict=True):
        for got, one in zip(whole, row, strict=True) if isinstance(whole, tuple) else [(whole, row)]:
            assert torch.equal(got[i], one[0])
    torch.testing.assert_close(whole, name.reference(x, *rest))


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_need_no_other_way(op: str, dtype: torch.dtype) -> None:
    """Each row is summed by itself in torch's own kernels; if that ever changes, this tells."""
    x = torch.randn(300, 576, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = torch.randn(576).to(dtype)
    args = (weight, 1e-5) if op == "rms_norm" else (weight, weight, 1e-5)
    whole = getattr(norm, op)(x, *args)
    assert all(torch.equal(whole[i], getattr(norm, op)(x[i : i + 1], *args)[0]) for i in (0, 1, 150, 299))


def test_rows_are_computed_one_by_one_where_their_place_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(24, 48)
    monkeypatch.setattr(batch_invariant, "_TRIED", {})
    monkeypatch.setattr(batch_invariant, "_rows_are_equal", lambda *_: False)
    x = torch.randn(5, 48)
    with invariant():
        got = linear.linear(x, weight)
    assert torch.equal(got, torch.cat([torch.nn.functional.linear(row[None], weight) for row in x]))


def test_attention_does_not_see_what_lies_behind_its_sequence() -> None:
    """The padding of a tile stands for keys that are not there yet; once they are, nothing may change."""
    q, k, v = torch.randn(21, 4, 12), torch.randn(21, 2, 12), torch.randn(21, 2, 12)
    for more in ({}, {"window": 5}, {"softcap": 2.0}, {"alibi_H": torch.rand(4)}):
        with invariant():
            whole = attention.attention(q, k, v, q_lens=[21], kv_lens=[21], scale=0.3, **more)
            part = attention.attention(q[10:13], k[:13], v[:13], q_lens=[3], kv_lens=[13], scale=0.3, **more)
        assert torch.equal(part, whole[10:13])
        expected = attention.attention.reference(q, k, v, q_lens=[21], kv_lens=[21], scale=0.3, **more)
        torch.testing.assert_close(whole, expected)


def test_layers_with_their_own_kernels_are_refused(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Packed4Bit(LinearLayer): ...

    monkeypatch.setitem(model.layers[0]._modules, "attn_post_norm", Packed4Bit())
    with pytest.raises(UsageError, match="Packed4Bit"):
        Engine(model, num_blocks=8, deterministic=True)
