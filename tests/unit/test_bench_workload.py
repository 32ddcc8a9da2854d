"""Loads and their figures: percentiles as numpy's, arrivals that are Poisson, lengths as promised, all by a seed."""

from __future__ import annotations

import statistics
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.core.errors import UsageError
from tokenmill.evals.latencies import Timing, percentile, summary
from tokenmill.evals.workload import Workload, arrivals


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-9, abs=1e-9)


def test_figures_of_timings() -> None:
    one = Timing((0.1, 0.2, 0.4), end=0.4, output_tokens=4)  # two of its tokens came in one piece
    other = Timing((0.3,), end=0.3, output_tokens=1)
    figures = summary([one, other])
    assert figures["mean_ttft_ms"] == pytest.approx(200)
    assert figures["p99_ttft_ms"] == pytest.approx(298)
    assert figures["mean_itl_ms"] == pytest.approx(150)
    assert figures["mean_tpot_ms"] == pytest.approx(100)  # of the first alone: one token has no token after it
    assert figures["median_e2el_ms"] == figures["p50_e2el_ms"] == pytest.approx(350)
    assert figures["std_e2el_ms"] == pytest.approx(50)


def test_nothing_timed_is_no_zero() -> None:
    assert set(summary([]).values()) == {None}


def test_an_answer_without_text_ends_with_its_first_token() -> None:
    assert Timing((), end=2.0, output_tokens=1).ttft == 2.0


def test_arrivals_are_poisson() -> None:
    """Exponential gaps: mean 1/rate, as much spread as mean. Even gaps and bursts have less and more."""
    for burstiness, spread in ((1.0, 1.0), (100.0, 0.1), (0.25, 2.0)):
        times = arrivals(20_000, 4.0, burstiness, seed=1)
        gaps = [later - sooner for sooner, later in pairwise(times)]
        assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.05)
        assert statistics.pstdev(gaps) / statistics.mean(gaps) == pytest.approx(spread, rel=0.07)
    assert arrivals(3, float("inf"), 1.0, 0) == [0.0, 0.0, 0.0]


def test_the_seed_decides_all() -> None:
    load = {"dataset": "sharegpt", "num_prompts": 20}
    first = Workload(**load, seed=3).asks(2.0)
    assert Workload(**load, seed=3).asks(2.0) == first
    assert Workload(**load, seed=4).asks(2.0) != first
    slower = Workload(**load, seed=3).asks(1.0)
    assert [ask.token_ids for ask in slower] == [ask.token_ids for ask in first], "the rate changes the times alone"


def test_sharegpt_lengths() -> None:
    """The medians that the module's docstring says; all within the context."""
    asks = Workload(dataset="sharegpt", num_prompts=4000, max_len=100_000).asks(float("inf"))
    assert statistics.median(len(ask.token_ids) for ask in asks) == pytest.approx(48, rel=0.1)  # those below 4 are out
    assert statistics.median(ask.output_len for ask in asks) == pytest.approx(225, rel=0.1)
    short = Workload(dataset="sharegpt", num_prompts=500, max_len=256).asks(float("inf"))
    assert max(len(ask.token_ids) + ask.output_len for ask in short) <= 256


def test_a_shared_prefix_and_nothing_else_is_shared() -> None:
    asks = Workload(dataset="prefix", num_prompts=30, input_len=40, prefix_len=30).asks(float("inf"))
    assert len({ask.token_ids[:30] for ask in asks}) == 1
    assert len({ask.token_ids[30:] for ask in asks}) == 30
    assert {len(ask.token_ids) for ask in asks} == {40}
    fixed = Workload(num_prompts=30, input_len=40).asks(float("inf"))
    assert len({ask.token_ids[:2] for ask in fixed}) == 30


def test_ids_stay_in_a_small_vocabulary() -> None:
    asks = Workload(vocab_size=50, num_prompts=50).asks(float("inf"))
    assert {token_id < 50 for ask in asks for token_id in ask.token_ids} == {True}
    assert len(asks[0].text.split()) == 128


@pytest.mark.parametrize(
    "wrong",
    [
        {"dataset": "sonnet"},
        {"num_prompts": 0},
        {"dataset": "prefix"},
        {"prefix_len": 4},
        {"dataset": "prefix", "prefix_len": 128},
        {"max_len": 100},
        {"dataset": "sharegpt", "max_len": 7},
    ],
)
def test_nonsense_is_refused(wrong: dict) -> None:
    with pytest.raises(UsageError):
        Workload(**wrong)


@pytest.mark.parametrize(("rate", "burstiness"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)])
def test_impossible_rates_are_refused(rate: float, burstiness: float) -> None:
    with pytest.raises(UsageError):
        arrivals(2, rate, burstiness, 0)
