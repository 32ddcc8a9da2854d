"""What the page computes when a slider moves: figures in, named figures out. Formulas only, for ``transpile.py``.

The verbs compute with the same formulas; the tests hold these sheets against their plans.
"""

from __future__ import annotations

from tokenmill.plan.formulas import cache_bytes, cache_share, sequence_values, weight_bytes, whole_blocks
from tokenmill.plan.laws import best_parameters, kaplan_parameters, kaplan_tokens, power_loss, rule_parameters
from tokenmill.plan.money import (
    api_month,
    blended_price,
    break_even_tokens,
    machines_for,
    own_month,
    purchase_month,
    rent_month,
)
from tokenmill.plan.rates import (
    BANDWIDTH_EFFICIENCY,
    CACHE_BLOCK,
    DEVICE_OVERHEAD,
    FLOPS_EFFICIENCY,
    STEP_OVERHEAD_S,
    USABLE,
    bytes_read,
    capacity_rps,
    decode_step_s,
    expert_share,
    first_token_s,
    layer_traffic_s,
    prompt_flops,
    replicas,
    token_flops,
    token_latency_s,
    training_flops,
    training_s,
)

HEADROOM = 0.2


def device_s(flops: float, read: float, gpus: float, bandwidth: float, peak_flops: float, sent_s: float) -> float:
    """Seconds of a step with the usual efficiencies."""
    return decode_step_s(
        read,
        flops,
        gpus,
        bandwidth,
        peak_flops,
        BANDWIDTH_EFFICIENCY,
        FLOPS_EFFICIENCY,
        sent_s,
        STEP_OVERHEAD_S,
    )


def serving(
    parameters: float,
    active: float,
    expert_parameters: float,
    table: float,
    head: float,
    looked_up: float,
    full_width: float,
    windowed_width: float,
    window: float,
    full_values: float,
    windowed_values: float,
    state_values: float,
    num_experts: float,
    experts_per_token: float,
    layers: float,
    hidden: float,
    kv_heads: float,
    latent: float,
    bits: float,
    table_bits: float,
    cache_bits: float,
    memory: float,
    bandwidth: float,
    peak_flops: float,
    link: float,
    link_latency: float,
    gpus: float,
    prompt: float,
    output: float,
    users: float,
    load: float,
) -> dict[str, float]:
    """Memory and speed of a replica of ``gpus`` devices with ``users`` at once; bytes, seconds, tokens a second."""
    weights = weight_bytes(parameters, table, bits, table_bits)
    experts = expert_parameters * bits / 8
    always = weights - experts - looked_up * table_bits / 8
    copied_bits = cache_bits * gpus * cache_share(kv_heads, gpus, latent)
    middle, most = prompt + output / 2, whole_blocks(prompt + output, CACHE_BLOCK)
    cache = cache_bytes(sequence_values(full_values, windowed_values, window, state_values, most), 1, copied_bits)
    read = cache_bytes(sequence_values(full_values, windowed_values, window, state_values, middle), 1, copied_bits)
    at_once = max(0, int((gpus * (memory * USABLE - DEVICE_OVERHEAD) - weights) / cache))
    token = token_flops(active, looked_up, full_width, windowed_width, window, middle)
    whole_prompt = prompt_flops(active, looked_up, head, full_width, windowed_width, window, prompt)
    met = expert_share(num_experts, experts_per_token, prompt)
    sent_s = layer_traffic_s(prompt, layers, hidden, gpus, max(link, 1), link_latency)
    prompt_s = device_s(whole_prompt, bytes_read(always, experts, met, 0, 1), gpus, bandwidth, peak_flops, sent_s)
    met = expert_share(num_experts, experts_per_token, 1)
    sent_s = layer_traffic_s(1, layers, hidden, gpus, max(link, 1), link_latency)
    alone_s = device_s(token, bytes_read(always, experts, met, read, 1), gpus, bandwidth, peak_flops, sent_s)
    met = expert_share(num_experts, experts_per_token, users)
    sent_s = layer_traffic_s(users, layers, hidden, gpus, max(link, 1), link_latency)
    all_read = bytes_read(always, experts, met, read, users)
    step_s = device_s(users * token, all_read, gpus, bandwidth, peak_flops, sent_s)
    capacity = capacity_rps(step_s, prompt_s, users, output)
    latency = token_latency_s(step_s, prompt_s, users, output)
    return {
        "weights": weights,
        "cache": users * cache,
        "overhead": gpus * DEVICE_OVERHEAD,
        "memory": gpus * memory,
        "free": gpus * memory - weights - users * cache - gpus * DEVICE_OVERHEAD,
        "fits": 1.0 if users <= at_once else 0.0,
        "at_once": at_once,
        "alone": 1 / alone_s,
        "each": 1 / latency,
        "together": capacity * output,
        "token_s": latency,
        "prompt_s": prompt_s,
        "first_token_s": first_token_s(prompt_s, step_s, capacity * (1 - HEADROOM)),
        "requests": capacity,
        "replicas": replicas(load, capacity, HEADROOM) if load > 0 else 1.0,
    }


def costing(
    tokens_a_day: float,
    input_price: float,
    output_price: float,
    cached_price: float,
    output_share: float,
    cached_share: float,
    machine_tokens_s: float,
    machine_price: float,
    rent_hour: float,
    month_fee: float,
    years: float,
    residual_share: float,
    interest: float,
    busy_w: float,
    idle_w: float,
    on_hours: float,
    power_overhead: float,
    price_kwh: float,
    peak_factor: float,
    staff_month: float,
) -> dict[str, float]:
    """A month from an API and from own machines; tokens a day from which own ones are cheaper (0: never)."""
    price = blended_price(input_price, output_price, cached_price, cached_share, output_share)
    machine = purchase_month(machine_price, residual_share, years, interest)
    machine += rent_month(rent_hour, on_hours) + month_fee
    own = own_month(
        tokens_a_day,
        machine_tokens_s,
        machine,
        busy_w,
        idle_w,
        on_hours,
        power_overhead,
        price_kwh,
        peak_factor,
        staff_month,
    )
    return {
        "api": api_month(tokens_a_day, price),
        "own": own,
        "machines": machines_for(tokens_a_day, machine_tokens_s, on_hours, peak_factor),
        "break_even": break_even_tokens(
            price,
            machine_tokens_s,
            machine,
            busy_w,
            idle_w,
            on_hours,
            power_overhead,
            price_kwh,
            peak_factor,
            staff_month,
        ),
    }


def training(
    active: float,
    looked_up: float,
    full_width: float,
    windowed_width: float,
    window: float,
    parameters: float,
    peak_flops: float,
    train_tokens: float,
    train_gpus: float,
    utilisation: float,
    gpu_hour: float,
    seq_len: float,
) -> dict[str, float]:
    """Days, device hours, money and checkpoint of training all weights, without failures."""
    attention = token_flops(0, 0, full_width, windowed_width, window, seq_len / 2)
    flops = training_flops(active - looked_up, 1, train_tokens, attention, 0)
    seconds = training_s(flops, train_gpus, peak_flops, utilisation)
    hours = seconds / 3600 * train_gpus
    return {
        "flops": flops,
        "days": seconds / 86400,
        "hours": hours,
        "usd": hours * gpu_hour,
        "checkpoint": 14 * parameters,
    }


def scaling(budget: float, e: float, a: float, b: float, alpha: float, beta: float) -> dict[str, float]:
    """Best sizes and tokens for a budget: Kaplan's, 20 tokens a parameter, and the law given."""
    rule = rule_parameters(budget)
    best = best_parameters(budget, a, b, alpha, beta)
    tokens = budget / (6 * best)
    return {
        "kaplan_parameters": kaplan_parameters(budget),
        "kaplan_tokens": kaplan_tokens(budget),
        "rule_parameters": rule,
        "rule_tokens": budget / (6 * rule),
        "law_parameters": best,
        "law_tokens": tokens,
        "law_loss": power_loss(best, tokens, e, a, b, alpha, beta),
    }
