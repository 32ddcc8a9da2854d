"""Rates of serving: published figures, a simulation of continuous batching, limits, splits and schedules."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.core.errors import UsageError
from tokenmill.plan import rates
from tokenmill.plan.catalog import gpus, models, quantisations
from tokenmill.plan.emit import Service, command, compose, kubernetes, switches
from tokenmill.plan.schedule import Need, Roads, Slot, parse_slot, plan_schedule
from tokenmill.plan.serve import Hardware, Subject, Wanted, plan_serve, point, prefill_seconds
from tokenmill.plan.shape import from_catalog
from tokenmill.plan.subject import free_bytes, hardware, subject

MODELS, GPUS, FORMATS = models(), gpus(), quantisations()


def setup(model: str, gpu: str, quant: str, count: int = 1, prompt: int = 1024, output: int = 256):  # type: ignore[no-untyped-def]
    found = subject(
        from_catalog(MODELS.find(model)), FORMATS.find(quant), prompt_tokens=prompt, output_tokens=output, gpus=count
    )
    return found, hardware(GPUS.find(gpu), count, quant)


def planned(found: Subject, device: Hardware, **wanted: float):  # type: ignore[no-untyped-def]
    return plan_serve(found, device, free_bytes(found, device), Wanted(**wanted))


# --- published figures (shared notes: llama.cpp issues, vLLM)


def test_decoding_of_an_8b_model_on_a_3090_is_as_published() -> None:
    """157 tokens a second at Q4_0 with llama.cpp (llama.cpp#15802)."""
    assert planned(*setup("llama-3.1-8b", "rtx-3090", "q4_0", prompt=128)).decode_tok_s == pytest.approx(157, rel=0.1)


def test_no_rate_is_above_the_roof_of_memory() -> None:
    """H100, 8B in 16 bits: 3,350 GB/s over what a token reads."""
    found, device = setup("llama-3.1-8b", "h100", "bf16", prompt=1, output=2)
    roof = device.bandwidth / found.read_bytes
    assert 0.75 * roof < planned(found, device).decode_tok_s < roof
    assert roof == pytest.approx(223, rel=0.02)  # 7.5e9 weights are read, the embedding's half a billion are not


def test_a_mixture_of_experts_reads_what_its_tokens_meet() -> None:
    found, device = setup("qwen3-coder-next", "h200", "bf16")
    alone, many = (point(found, device, batch, 10**6).step_s for batch in (1, 256))
    dense = replace(found, expert_bytes=0.0, read_bytes=found.weight_bytes)
    assert alone < 0.15 * point(dense, device, 1, 10**6).step_s  # 3.9 of 80 billion
    assert many > 5 * alone  # nearly all of them for 256 tokens


@given(st.integers(1, 512), st.integers(1, 8), st.integers(1, 200))
@settings(max_examples=20, deadline=None, database=None)
def test_the_share_of_experts_is_what_drawing_gives(experts: int, each: int, batch: int) -> None:
    each = min(each, experts)
    share = rates.expert_share(experts, each, batch)
    assert each / experts - 1e-12 <= share <= 1
    assert rates.expert_share(experts, each, 1) == pytest.approx(each / experts)


# --- the closed form against a simulation of continuous batching


@pytest.mark.parametrize(
    ("batch", "output", "step", "prompt"), [(1, 50, 0.01, 0.1), (8, 100, 0.02, 0.05), (32, 40, 0.01, 0.2)]
)
def test_capacity_is_that_of_a_simulated_replica(batch: int, output: int, step: float, prompt: float) -> None:
    """A batch that is always full; a request that ends is replaced, whose prompt is read while the others wait."""
    left = [output - n * output // batch for n in range(batch)]  # begun one after the other
    clock, ended, horizon = 0.0, 0, 40 * output
    for _ in range(horizon):
        clock += step
        left = [n - 1 for n in left]
        for n, tokens in enumerate(left):
            if tokens == 0:
                ended, clock, left[n] = ended + 1, clock + prompt, output
    assert ended / clock == pytest.approx(rates.capacity_rps(step, prompt, batch, output), rel=0.03)


def test_waiting_is_that_of_a_simulated_queue() -> None:
    """Pollaczek and Khinchine against requests that come at random."""
    import random

    draw, prompt, load = random.Random(0), 0.1, 6.0
    arrival = free = waited = 0.0
    for _ in range(40_000):
        arrival += draw.expovariate(load)
        begin = max(arrival, free)
        waited, free = waited + begin - arrival, begin + prompt
    assert waited / 40_000 == pytest.approx(rates.prompt_wait_s(prompt, load), rel=0.1)
    assert rates.prompt_wait_s(prompt, 11) > 1e8


# --- targets


def test_the_batch_is_the_largest_in_time() -> None:
    found, device = setup("llama-3.1-8b", "h100", "bf16")
    plan = planned(found, device, token_latency_s=0.02)
    assert plan.limited_by == "time from token to token"
    assert plan.point.token_latency_s <= 0.02 < point(found, device, plan.point.batch + 1, 10**6).token_latency_s


def test_the_load_keeps_the_first_token_in_time() -> None:
    found, device = setup("llama-3.3-70b", "h100", "fp8", count=2, prompt=4096)
    target = 1.1 * prefill_seconds(found, device) + 0.1
    plan = planned(found, device, token_latency_s=0.1, first_token_s=target, requests_per_s=40)
    assert plan.limited_by == "time to the first token"
    assert plan.first_token_s == pytest.approx(target, rel=1e-6)
    assert (plan.replicas - 1) * plan.requests_per_s < 40 <= plan.replicas * plan.requests_per_s


@pytest.mark.parametrize(
    ("wanted", "said"), [({"token_latency_s": 0.001}, "even alone"), ({"first_token_s": 0.001}, "nobody waiting")]
)
def test_what_no_batch_reaches_is_refused(wanted: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        planned(*setup("llama-3.1-8b", "h100", "bf16"), **wanted)


def test_what_does_not_fit_is_refused_with_what_would_help() -> None:
    with pytest.raises(UsageError, match="smaller number format"):
        planned(*setup("llama-3.3-70b", "rtx-4090", "bf16"))


def test_impossible_input_names_the_nearest_possibility() -> None:
    with pytest.raises(UsageError, match=r"2 can"):
        setup("llama-3.1-8b", "h100", "bf16", count=3)
    with pytest.raises(UsageError, match="131,072"):
        setup("llama-3.1-8b", "h100", "bf16", prompt=200_000)


def test_more_devices_than_key_heads_hold_the_cache_twice() -> None:
    eight, sixteen = (setup("llama-3.3-70b", "h100", "bf16", count=n)[0].kv_bytes for n in (8, 16))
    assert sixteen == 2 * eight


@given(st.sampled_from([1, 2, 4, 8]), st.integers(16, 4096), st.integers(1, 64))
@settings(max_examples=15, deadline=None, database=None)
def test_rates_go_the_right_way(count: int, prompt: int, batch: int) -> None:
    found, device = setup("llama-3.1-8b", "h100", "bf16", count=count, prompt=prompt)
    here, later = point(found, device, batch, 10**6), point(found, device, batch + 1, 10**6)
    assert later.step_s >= here.step_s
    assert later.tokens_per_s >= here.tokens_per_s * 0.999
    wider = replace(device, bandwidth=2 * device.bandwidth)
    assert point(found, wider, batch, 10**6).step_s <= here.step_s


# --- by the clock

ROADS = Roads(devices=2, device_memory=32e9, host_memory=64e9, disk=5e9, host_link=25e9)
CODER, THINKER, TALKER = (
    Need("coder", 42e9, 2e9, 1.5e9),
    Need("thinker", 19e9, 2e9, 1.5e9),
    Need("talker", 40e9, 3e9, 1.5e9),
)
DAY = [Slot(480, 720, CODER), Slot(780, 1020, THINKER), Slot(1080, 1320, TALKER)]


def test_each_stretch_is_checked() -> None:
    """Asleep at level 1, two models take 59 to 82 GB of the host's 64: three of one kind are too many."""
    plan = plan_schedule(DAY, ROADS, "1")
    assert [s.fits for s in plan.stretches] == [False, False, False]
    assert plan.stretches[0].host_free == pytest.approx(64e9 - 8e9 - 59e9)
    assert plan.stretches[0].device_bytes == pytest.approx((42e9 + 2e9) / 2 + 1.5e9 + 2e9)
    assert plan_schedule(DAY, ROADS, "2").fits
    assert plan_schedule(DAY, replace(ROADS, host_memory=128e9), "1").fits


def test_slots_that_overlap_add_up() -> None:
    plan = plan_schedule([Slot(480, 720, CODER), Slot(600, 780, THINKER)], ROADS, "2")
    assert [(s.begin, s.awake) for s in plan.stretches] == [
        (480, ("coder",)),
        (600, ("coder", "thinker")),
        (720, ("thinker",)),
    ]
    assert [s.fits for s in plan.stretches] == [True, False, True]


def test_switches_are_bytes_over_roads() -> None:
    plan = plan_schedule(DAY, replace(ROADS, host_memory=256e9), "1")
    second = plan.switches[1]
    assert (second.leaves, second.enters) == (("coder",), ("thinker",))
    assert second.seconds["1"] == pytest.approx(42e9 / 50e9 + 0.1 + 19e9 / 50e9 + 0.4)
    assert second.seconds["2"] == pytest.approx(0.1 + 19e9 / 5e9 + 0.8)
    assert second.seconds["stop"] == pytest.approx(5 + 45 + 19e9 / 5e9)
    assert plan.switches[0].leaves == ("talker",)  # of the evening before
    assert plan.start_s["coder"] == pytest.approx(45 + 42 / 5)


def test_one_model_needs_no_switch() -> None:
    assert plan_schedule([Slot(480, 720, CODER), Slot(780, 1020, CODER)], ROADS, "1").switches == ()


def test_a_slot_may_go_over_midnight() -> None:
    assert parse_slot("22:00-02:30=llama-3.1-8b:awq") == (1320, 1590, "llama-3.1-8b:awq")


@pytest.mark.parametrize("text", ["8-12=a", "25:00-26:00=a", "08:00-08:00=a", "08:00-12:00", "08:61-09:00=a"])
def test_a_slot_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_slot(text)


# --- what is written

SERVICE = Service("org/model", "vllm", 8192, 32, 2, 3, 40.0)


def test_kubernetes_and_compose_are_yaml_with_the_plans_figures() -> None:
    deployment, service = yaml.safe_load_all(kubernetes(SERVICE))
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert deployment["spec"]["replicas"] == 3
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2}
    assert container["command"][-2:] == ["--tensor-parallel-size", "2"]
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    written = yaml.safe_load(compose(SERVICE))["services"]["model"]
    assert written["command"] == SERVICE.words
    assert written["deploy"]["resources"]["reservations"]["devices"][0]["count"] == 2


def test_the_command_for_tokenmill_is_one_that_it_takes() -> None:
    """Every flag exists, and the values pass the parser's own checks."""
    from tokenmill.cli.app import load_verb

    words = Service("smollm2:135m", "tokenmill", 2048, 8, 0, 1, 0.1).words
    assert words[:2] == ["tokenmill", "serve"]
    parsed = load_verb("serve").make_context("serve", words[2:])
    assert parsed.params["ctx_size"] == 2048
    assert command(Service("a b", "tokenmill", 1, 1, 0, 1, 1.0)).startswith("tokenmill serve 'a b'")


def test_switches_are_a_crontab_of_sleeping_and_waking() -> None:
    plan = plan_schedule(DAY, replace(ROADS, host_memory=256e9), "2")
    lines = switches(plan, {"coder": 8000, "thinker": 8001, "talker": 8002}).splitlines()
    noon = next(line for line in lines if line.startswith("0 13 * * * "))
    assert noon.index("8000/sleep?level=2") < noon.index("8001/wake_up?tags=weights") < noon.index("reload_weights")
    assert noon.index("reload_weights") < noon.index("8001/wake_up?tags=kv_cache")


def test_measured_figures_are_finite() -> None:
    plan = planned(*setup("smollm2-135m", "rtx-4090", "bf16"))
    assert all(math.isfinite(p.tokens_per_s) for p in plan.points)
