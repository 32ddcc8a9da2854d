"""bench throughput: every figure is there and positive, work is really done, rounds alternate, nonsense is refused."""

from __future__ import annotations

import mmap
import sys
from typing import Any

import pytest

import tiny
from tokenmill.core.errors import TokenmillError, UsageError
from tokenmill.evals import throughput as module
from tokenmill.evals.latency import latency
from tokenmill.evals.throughput import Moment, Rates, Shape, Throughput, decode_rate, measure, peak_rss_mb, reset_peak
from tokenmill.evals.turns import compare
from tokenmill.models import load_model
from tokenmill.nn.decoder import Decoder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load_model(tiny.write(tiny.FAMILIES["llama"], tmp_path_factory.mktemp("llama")), dtype="float32").decoder


class Fixed:
    """A peer that takes no time and remembers what it was asked."""

    name = "fixed"

    def __init__(self, log: list[str], *rates: float) -> None:
        self.log, self.rates = log, list(rates)

    def measure(self, shape: Shape) -> Rates:
        self.log.append(f"fixed {shape}")
        return Rates(100.0, self.rates.pop(0))

    def document(self) -> dict[str, Any]:
        return {"name": self.name}

    def close(self) -> None: ...


def test_a_figure_for_each_shape(model: Decoder) -> None:
    told: list[tuple[int, int]] = []
    shapes = [Shape(1, 8, 4), Shape(3, 5, 2)]
    results = compare(model, shapes, [], progress=lambda *now: told.append(now))
    rows = [result.document() for result in results]
    assert [(r["batch"], r["prompt_len"], r["gen_len"]) for r in rows] == [(1, 8, 4), (3, 5, 2)]
    assert all(min(r["prefill_tok_s"], r["decode_tok_s"], r["peak_rss_mb"]) > 0 for r in rows)
    assert all("runs" not in row and "peers" not in row for row in rows)
    assert told == [(1, 2), (2, 2)]


def test_rates_are_tokens_over_seconds(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def moments(model: Decoder, shape: Shape, seed: int) -> list[Moment]:
        return [Moment(2.0 + n, 4 * (n + 1), 4, 4 * (n == shape.gen_len - 1)) for n in range(shape.gen_len)]

    monkeypatch.setattr(module, "_moments", moments)
    rates = measure(model, Shape(4, 6, 5))
    assert rates.prefill_tok_s == 4 * 6 / 2.0  # until the first token
    assert rates.decode_tok_s == 4 * 4 / 4.0  # four more tokens each, in four seconds more


def test_decoding_counts_while_the_whole_batch_decodes() -> None:
    begins = [Moment(1.0, 1, 1, 0), Moment(2.0, 3, 2, 0)]
    assert decode_rate([*begins, Moment(2.5, 5, 2, 1), Moment(9.0, 6, 2, 2)]) == 2 / 0.5
    short = [Moment(1.0, 1, 1, 0), Moment(2.0, 3, 2, 1), Moment(4.0, 4, 2, 2)]  # never both
    assert decode_rate(short) == 1 / 2.0


def test_what_is_measured_is_what_is_done(model: Decoder) -> None:
    found = module._moments(model, Shape(3, 5, 4), 0)
    assert found[-1][1:] == (12, 3, 3)
    assert [moment.seconds for moment in found] == sorted(moment.seconds for moment in found)


def test_the_median_of_repetitions_counts() -> None:
    done = Throughput(Shape(1, 2, 3), tuple(Rates(p, d) for p, d in ((1, 30), (5, 10), (2, 90))), 7.0)
    assert (done.prefill_tok_s, done.decode_tok_s) == (2, 30)
    assert done.document()["runs"][1] == {"prefill_tok_s": 5, "decode_tok_s": 10}


def test_ours_and_a_peer_alternate(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios are taken within a round: 60/30 and 20/5, the median of which is 3, where the medians' ratio is 2.3."""
    log: list[str] = []
    ours = [Rates(50.0, 60.0), Rates(50.0, 20.0)]

    def measured(model: Decoder, shape: Shape, seed: int) -> Rates:
        log.append(f"ours {shape}")
        return ours.pop(0)

    monkeypatch.setattr("tokenmill.evals.turns.measure", measured)
    result = compare(model, [Shape(2, 4, 3)], [Fixed(log, 30.0, 5.0)], repeat=2)[0]
    assert log == ["ours 2 x 4+3", "fixed 2 x 4+3"] * 2
    row = result.document()
    assert row["decode_tok_s"] == 40.0
    assert row["peers"]["fixed"]["decode_tok_s"] == 17.5
    assert row["peers"]["fixed"]["decode_ratio"] == 3.0
    assert row["peers"]["fixed"]["prefill_ratio"] == 0.5


def test_a_failed_pass_is_no_measurement(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that drops every request would else be the fastest of all."""

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr("tokenmill.engine.engine.run", broken)
    with pytest.raises(TokenmillError, match="planted"):
        measure(model, Shape(1, 4, 2))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not let a peak be taken back")
def test_the_peak_begins_anew() -> None:
    """A row's peak is its own, not that of a larger row before it."""
    reset_peak()
    with mmap.mmap(-1, 300_000_000) as block:  # not from the allocator, which may have kept as much from before
        block.write(b"x" * len(block))
        high = peak_rss_mb()
    reset_peak()
    assert high - peak_rss_mb() > 200


@pytest.mark.parametrize("shapes", [[], [Shape(0, 8, 4)], [Shape(1, 8, 1)], [Shape(1, 0, 4)]])
def test_nonsense_is_refused(model: Decoder, shapes: list[Shape]) -> None:
    with pytest.raises(UsageError):
        compare(model, shapes, [])


def test_what_does_not_fit_is_refused(model: Decoder) -> None:
    with pytest.raises(UsageError, match="128"):
        compare(model, [Shape(1, 8, 4), Shape(1, 100, 29)], [])


def test_latency_has_a_time_for_every_token(model: Decoder) -> None:
    row = latency(model, [Shape(2, 6, 4)], repeat=2)[0]
    assert (row["batch"], row["prompt_len"], row["gen_len"], row["repeat"]) == (2, 6, 4, 2)
    assert 0 < row["p50_ttft_ms"] < row["p50_e2el_ms"]
    # 3 gaps of 4 tokens fill the time between the first token and the last
    assert row["mean_ttft_ms"] + 3 * row["mean_itl_ms"] == pytest.approx(row["mean_e2el_ms"])
    assert row["mean_tpot_ms"] == pytest.approx(row["mean_itl_ms"])
