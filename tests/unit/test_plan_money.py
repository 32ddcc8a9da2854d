"""Training, scaling laws and their fit, cost, choice: published figures, planted laws, brute force."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.core.errors import FormatError, UsageError
from tokenmill.plan import laws, money, rates
from tokenmill.plan.catalog import Model, gpus, models
from tokenmill.plan.choose import LICENCES, Room, Wish, choose
from tokenmill.plan.cost import Case, plan_cost
from tokenmill.plan.fit import REFITTED, Law, Run, fit, read_runs
from tokenmill.plan.prices import apis, machines, old_prices
from tokenmill.plan.shape import from_catalog
from tokenmill.plan.subject import lora_parameters, peak_flops, work
from tokenmill.plan.train import Cluster, gpus_for, plan_train

MODELS, APIS = models(), tuple(apis().entries.values())
H100 = Cluster("h100-sxm", 8, 989e12, utilisation=0.5, usd_gpu_hour=2.0)


# --- training


def test_the_time_of_a_published_run() -> None:
    """nanochat: 4.3308e19 operations on 8 H100 at 50 % took 3.04 hours."""
    assert rates.training_s(4.3308e19, 8, 989e12, 0.4993) / 3600 == pytest.approx(3.04, rel=0.01)


def test_tokens_a_second_of_a_published_run() -> None:
    """torchtitan: Llama-3.1-8B, 5,762 tokens a second and GPU at 33 to 39 % of 989 TFLOP/s."""
    plan = plan_train(
        work(from_catalog(MODELS.find("llama-3.1-8b")), 1e9, seq_len=8192), replace(H100, utilisation=0.33)
    )
    assert plan.tokens_per_s / 8 == pytest.approx(5762, rel=0.1)


def test_six_n_d_without_attention() -> None:
    assert rates.training_flops(7e9, 1, 1e12, 0, 0) == pytest.approx(6 * 7e9 * 1e12)
    assert rates.training_flops(7e9, 1, 1e12, 0, 1) == pytest.approx(8 * 7e9 * 1e12)
    assert rates.training_flops(7e9, 0.0, 1e12, 0, 0) == pytest.approx(4 * 7e9 * 1e12)  # LoRA: two thirds


def test_counted_operations_are_those_of_the_model_itself() -> None:
    """The planner's count from the catalog against ``nn/cost.py`` of the model that is really built."""
    from tokenmill.models.load import read_any_config
    from tokenmill.nn import cost

    config = {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 1e5, "tie_word_embeddings": True, "hidden_act": "silu",
    }  # fmt: skip
    _, built = read_any_config(config, "smollm2")
    planned = work(from_catalog(MODELS.find("smollm2-135m")), 1.0, seq_len=2048)
    ours = planned.attention_flops + 2 * planned.active
    assert ours == pytest.approx(cost.flops_per_token(built, 1024), rel=1e-3)


def test_lora_is_as_many_weights_as_peft_counts() -> None:
    """Llama-2-7B, rank 8 on q and v: 4,194,304 (the PEFT documentation's figure)."""
    assert lora_parameters(from_catalog(MODELS.find("llama-2-7b")), 8, ("q", "v")) == 4_194_304


@given(st.floats(10, 1e4), st.floats(1e4, 1e9))
@settings(max_examples=30, deadline=None, database=None)
def test_youngs_interval_loses_least(write: float, failure: float) -> None:
    best = rates.checkpoint_interval_s(write, failure)
    for factor in (0.5, 0.8, 1.25, 2.0):
        assert rates.goodput(write, 0, best, failure) >= rates.goodput(write, 0, best * factor, failure) - 1e-12


def test_devices_for_a_deadline_are_the_fewest() -> None:
    planned = work(from_catalog(MODELS.find("llama-2-70b")), 2e12, seq_len=4096)
    cluster = replace(H100, utilisation=0.4)
    count = gpus_for(planned, cluster, 60)
    assert plan_train(planned, replace(cluster, gpus=count)).days <= 60
    assert plan_train(planned, replace(cluster, gpus=count - 1)).days > 60


def test_a_checkpoint_has_weights_master_and_moments() -> None:
    """70B: 14 bytes a weight are 987 GB; the lesson's 560 have no master weights and 6 bytes of moments."""
    planned = work(from_catalog(MODELS.find("llama-2-70b")), 1e9, seq_len=4096)
    assert plan_train(planned, H100).checkpoint_bytes == pytest.approx(69e9 * 14, rel=0.01)


def test_peaks_are_those_of_the_format() -> None:
    h100, old = gpus().find("h100"), gpus().find("a100-80gb")
    assert (peak_flops(h100, "fp8"), peak_flops(h100, "awq"), peak_flops(old, "fp8")) == (1979e12, 989e12, 312e12)


# --- laws

CHINCHILLA_TABLE = [(1.92e19, 0.4e9), (1.21e20, 1e9), (1.23e22, 10e9), (5.76e23, 67e9), (3.85e24, 175e9)]


@pytest.mark.parametrize(("flops", "parameters"), CHINCHILLA_TABLE)
def test_twenty_tokens_a_parameter_is_chinchillas_table(flops: float, parameters: float) -> None:
    """Table 3 of arXiv 2203.15556, by its first approach."""
    assert laws.rule_parameters(flops) == pytest.approx(parameters, rel=0.1)


def test_kaplan_wants_larger_models_for_larger_budgets() -> None:
    for flops in (1e21, 1e23):
        product = 6 * laws.kaplan_parameters(flops) * laws.kaplan_tokens(flops)
        assert 0.3 < product / flops < 3  # two fits of their own, which need not multiply to C exactly
    assert laws.kaplan_parameters(1e24) / laws.rule_parameters(1e24) > 10


@given(st.floats(1e16, 1e25))
@settings(max_examples=20, deadline=None, database=None)
def test_the_best_split_is_best(flops: float) -> None:
    parameters, tokens = REFITTED.best(flops)
    assert 6 * parameters * tokens == pytest.approx(flops)
    for factor in (0.7, 0.9, 1.1, 1.5):
        assert REFITTED.loss(parameters * factor, tokens / factor) > REFITTED.loss(parameters, tokens)


def test_serving_much_wants_smaller_models_trained_longer() -> None:
    e, a, b, alpha, beta = (REFITTED.e, REFITTED.a, REFITTED.b, REFITTED.alpha, REFITTED.beta)
    best, tokens = REFITTED.best(1e21)
    loss = REFITTED.loss(best, tokens)
    small = laws.best_parameters_served(loss, 1e12, best, e, a, b, alpha, beta)
    grid = [best * 10 ** (-n / 200) for n in range(120)]
    brute = min(grid, key=lambda n: laws.life_flops(n, loss, 1e12, e, a, b, alpha, beta))
    assert small == pytest.approx(brute, rel=0.03)
    assert laws.best_parameters_served(loss, 0.0, best, e, a, b, alpha, beta) == pytest.approx(best, rel=0.01)


# --- a law fitted to runs


def runs_of(law: Law, noise: float, seed: int = 0) -> list[Run]:
    draw = np.random.default_rng(seed)
    sizes, lengths = (1e6, 3e6, 1e7, 3e7), (2e7, 6e7, 2e8, 6e8)
    return [
        Run(n, d, law.loss(n, d) * float(np.exp(noise * draw.standard_normal())), f"{n:g} {d:g}")
        for n, d in itertools.product(sizes, lengths)
    ]


def test_a_planted_law_is_found_exactly() -> None:
    found = fit(runs_of(REFITTED, 0.0), bootstrap=4)
    for name in ("e", "a", "b", "alpha", "beta"):
        assert getattr(found.law, name) == pytest.approx(getattr(REFITTED, name), rel=1e-4)
    assert abs(found.held_out) < 1e-4


def test_with_noise_the_truth_lies_in_the_interval() -> None:
    found = fit(runs_of(REFITTED, 0.003), bootstrap=60)
    low, high = found.interval(lambda law: law.best(1e19)[0])
    assert low < REFITTED.best(1e19)[0] < high
    assert low < found.law.best(1e19)[0] < high
    assert 0.001 < found.spread < 0.006


def test_one_broken_run_does_not_move_the_law() -> None:
    runs = runs_of(REFITTED, 0.001)
    runs[5] = replace(runs[5], loss=runs[5].loss * 1.3)
    found = fit(runs, bootstrap=4)
    assert found.law.loss(1e8, 2e9) == pytest.approx(REFITTED.loss(1e8, 2e9), rel=0.02)


def test_too_little_is_refused() -> None:
    with pytest.raises(UsageError, match="6 runs"):
        fit(runs_of(REFITTED, 0.0)[:5])
    with pytest.raises(UsageError, match="1 sizes"):
        fit([Run(1e6, 1e7 * n, 3.0) for n in range(1, 9)])
    with pytest.raises(UsageError, match="positive"):
        fit([*runs_of(REFITTED, 0.0), Run(1e6, 1e7, math.nan)])


def test_runs_are_read_from_folders_and_tables(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"status": "finished", "parameters": 5}), encoding="utf-8")
    rows = [
        {"step": 1, "total_tokens": 100},
        {"step": 1, "eval_loss": 3.0},
        {"step": 2, "total_tokens": 200},
        {"eval_loss": 2.5},
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    table = tmp_path / "t.csv"
    table.write_text("parameters,tokens,loss\n1e6,2e7,3.5\n", encoding="utf-8")
    assert read_runs([folder, table]) == [Run(5.0, 200.0, 2.5, "run"), Run(1e6, 2e7, 3.5, "row 1")]
    (folder / "run.json").write_text(json.dumps({"status": "failed", "parameters": 5}), encoding="utf-8")
    with pytest.raises(FormatError, match="finished"):
        read_runs([folder])
    table.write_text("parameters,tokens\n1,2\n", encoding="utf-8")
    with pytest.raises(FormatError, match="loss"):
        read_runs([table])


# --- money

CASE = Case(
    tokens_a_day=1e7, api_price=5.0, machine_tokens_s=2000.0, machine_price=9000.0, rent_hour=0.0, month_fee=0.0,
    years=3.0, residual_share=0.2, interest=0.05, busy_w=1000.0, idle_w=100.0, on_hours=24.0, power_overhead=1.2,
    price_kwh=0.2, peak_factor=3.0, staff_month=0.0,
)  # fmt: skip


def test_electricity_of_the_lesson() -> None:
    """450 W all year at $0.12 are $473 by arithmetic (the lesson rounds to 400), 120 kW are $126,144 (its 105,000)."""
    assert 12 * money.electricity_month(450, 0, 24, 24, 1, 0.12) == pytest.approx(473.04)
    assert 12 * money.electricity_month(120_000, 0, 24, 24, 1, 0.12) == pytest.approx(126_144)
    assert money.electricity_month(1150, 0, 8, 24, 1, 0.12) == pytest.approx(33.58, rel=1e-3)  # the lesson: 80


def test_the_lessons_table_is_three_times_its_own_price() -> None:
    """A million tokens a day at its $5 are $152 a month; its table says $450."""
    assert money.api_month(1e6, 5.0) == pytest.approx(152.08, rel=1e-3)


@given(
    st.floats(0.5, 40), st.floats(50, 50_000), st.floats(10, 1e5), st.floats(0, 5000), st.floats(0, 0.5),
    st.floats(1, 24), st.floats(1, 8), st.floats(0, 5000),
)  # fmt: skip
@settings(max_examples=60, deadline=None, database=None)
def test_the_break_even_is_where_brute_force_finds_it(
    api: float, rate: float, month: float, watts: float, kwh: float, hours: float, peak: float, staff: float
) -> None:
    arguments = (rate, month, watts, watts / 5, hours, 1.3, kwh, peak, staff)
    found = money.break_even_tokens(api, *arguments)

    def own_is_cheaper(tokens: float) -> bool:
        return money.own_month(tokens, *arguments) <= money.api_month(tokens, api) * (1 + 1e-9)

    one = rate * hours * 3600 / peak
    if found == 0:  # not even machines that are full to the last token ever pay
        assert not any(own_is_cheaper(n * one * 0.999999) for n in (1, 2, 5, 50, 5000))
        return
    assert all(own_is_cheaper(found * factor) for factor in (1.000001, 1.01, 1.3, 2, 7.7, 50, 1000))
    below = [found * (1 - step) for step in (1e-6, 1e-3)]
    after_a_step = [n * one * 1.000001 for n in range(max(1, int(found / one) - 1), int(found / one) + 2)]
    assert any(not own_is_cheaper(tokens) for tokens in [*below, *(t for t in after_a_step if t < found)])


def test_what_is_moved_moves_the_right_way() -> None:
    plan = plan_cost(CASE)
    moves = {move.name: move for move in plan.moves}
    assert moves["API price"].low > plan.break_even_tokens_a_day > moves["API price"].high
    assert moves["price of a machine"].low < plan.break_even_tokens_a_day < moves["price of a machine"].high
    assert [m.swing for m in plan.moves] == sorted((m.swing for m in plan.moves), reverse=True)
    json.loads(json.dumps(plan.as_dict(), allow_nan=False))


def test_a_machine_is_paid_back_by_what_it_saves() -> None:
    plan = plan_cost(CASE)
    saved = plan.bill.api - plan.electricity_month
    assert plan.payback_months == pytest.approx(9000 / saved)


def test_prices_grow_old() -> None:
    from datetime import date

    catalog = apis()
    entry = catalog.find("gpt-4o")
    assert old_prices(catalog, entry, date(2026, 3, 1)) == []
    assert any("input_usd of gpt-4o" in line for line in old_prices(catalog, entry, date(2027, 3, 1)))


def test_every_machine_has_a_gpu_of_the_catalog_and_one_price() -> None:
    for machine in machines().entries.values():
        gpus().find(machine.gpu)
    with pytest.raises(ValueError, match="exactly one"):
        machines().find("dual-rtx-5090").model_validate(
            machines().find("dual-rtx-5090").model_dump() | {"rent_usd_hour": 1.0}
        )


# --- choice


def chosen(room=None, **wish):  # type: ignore[no-untyped-def]
    return choose(MODELS.entries.values(), APIS, Wish(**wish), room)


def test_what_lacks_something_is_left_out_and_told_why() -> None:
    advice = chosen(task="chat", languages=("de",), licence="permissive", context=32768)
    names = {place.model for place in advice.ranked}
    assert names
    for name in names:
        model = MODELS.find(name)
        assert "chat" in model.tasks
        assert "de" in model.languages
        assert model.context >= 32768
        assert LICENCES[model.license][0] == "permissive"
    assert len(names) + len(advice.excluded) == len(MODELS.entries)
    assert "700 million" in advice.excluded["llama-3.3-70b"] or "licence" in advice.excluded["llama-3.3-70b"]


def test_every_licence_of_the_catalog_is_known() -> None:
    assert {model.license for model in MODELS.entries.values()} <= set(LICENCES)


def test_a_published_figure_decides_and_is_named() -> None:
    first = chosen(task="agentic-code").ranked[0]
    assert first.model == "minimax-m2.5"  # 80.2 % on SWE-bench
    assert any("80.2" in reason for reason in first.reasons)


def test_memory_and_speed_exclude() -> None:
    def room(model: Model) -> Room | str:
        return "lacks memory" if model.parameters > 10e9 else Room("awq", 1e9, 0.5, 30.0)

    advice = chosen(room, task="chat", least_tok_s=25)
    assert all(MODELS.find(place.model).parameters <= 10e9 for place in advice.ranked)
    assert not chosen(room, task="chat", least_tok_s=40).ranked


@pytest.mark.parametrize(
    ("regime", "by_api"), [("none", True), ("gdpr", True), ("hipaa", True), ("internal", False), ("itar", False)]
)
def test_rules_decide_whether_an_api_is_in_question(regime: str, by_api: bool) -> None:
    advice = chosen(task="documents", regime=regime)
    assert bool(advice.apis) is by_api
    assert (regime.upper() in " ".join(advice.hosting)) is (regime not in ("none", "internal"))


def test_examples_decide_about_training() -> None:
    assert "too few" in " ".join(chosen(task="chat", examples=20).specialised)
    assert "LoRA" in " ".join(chosen(task="chat", examples=2000).specialised)
    assert "retrieval" in " ".join(chosen(task="chat", knowledge="changing").specialised)


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'reasoning'"):
        chosen(task="reasonin")
