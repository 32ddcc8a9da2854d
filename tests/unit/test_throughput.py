"""bench throughput: every figure is there and positive, work is really done, nonsense is refused."""

from __future__ import annotations

import pytest

import tiny
from tokenmill.core.errors import UsageError
from tokenmill.evals import throughput as module
from tokenmill.evals.throughput import throughput
from tokenmill.models import load_model
from tokenmill.nn.decoder import Decoder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load_model(tiny.write(tiny.FAMILIES["llama"], tmp_path_factory.mktemp("llama")), dtype="float32").decoder


def test_a_figure_for_each_batch(model: Decoder) -> None:
    told = []
    results = throughput(model, [1, 3], prompt_len=8, gen_len=4, progress=lambda *now: told.append(now))
    assert [r.batch for r in results] == [1, 3]
    assert all(min(r.prefill_tok_s, r.decode_tok_s, r.peak_rss_mb) > 0 for r in results)
    assert told == [(1, 2), (2, 2)]


def test_rates_are_tokens_over_seconds(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_seconds", lambda model, batch, prompt_len, gen_len, seed: 2.0 + gen_len)
    result = throughput(model, [4], prompt_len=6, gen_len=5)[0]
    assert result.prefill_tok_s == 4 * 6 / 3.0  # until the first token
    assert result.decode_tok_s == 4 * 4 / 4.0  # four more tokens each, in four seconds more


@pytest.mark.parametrize("asked", [{"batches": []}, {"batches": [0]}, {"batches": [1], "gen_len": 1}])
def test_nonsense_is_refused(model: Decoder, asked: dict) -> None:
    with pytest.raises(UsageError):
        throughput(model, **asked)


def test_what_does_not_fit_is_refused(model: Decoder) -> None:
    with pytest.raises(UsageError, match="128"):
        throughput(model, [1], prompt_len=100, gen_len=29)
