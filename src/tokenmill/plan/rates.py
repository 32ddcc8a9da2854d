"""How fast: pure arithmetic from bytes, bandwidths and operations to seconds and tokens a second.

Only functions of numbers that return a number, in the part of Python that ``plan/page/transpile.py`` turns into
JavaScript, so the page in the browser computes with these very formulas. Units: bytes, seconds, operations.

Decoding is a roofline (Williams et al. 2009): a step takes as long as the slower of reading (weights once a step, every
sequence's keys and values) and computing, plus what no overlap hides: the all-reduces of tensor parallelism and a fixed
time a step. Reading and computing reach a share of what the data sheet says, the efficiency.
"""

from __future__ import annotations

from math import ceil

BANDWIDTH_EFFICIENCY = 0.85
"""Share of the data sheet's bandwidth that decoding reaches: 8B as Q4_0 at 157 tokens a second on an RTX 3090
(llama.cpp #15802) is 0.78 with everything, 0.85 beside the fixed half millisecond."""
FLOPS_EFFICIENCY = 0.5
"""Share of the data sheet's operations that long prompts reach, as good training does (nanochat: 494 of 989
TFLOP/s)."""
STEP_OVERHEAD_S = 0.5e-3
"""Launches, sampling, scheduling that a step waits for, with CUDA graphs."""
DEVICE_OVERHEAD = 1.5e9
"""Bytes on each device beside weights and caches: context, libraries, graphs, activations of a chunk of prompt (the
lesson's 1.5 GB)."""
USABLE = 0.95
"""Share of a device's memory that is planned with; the rest is lost between blocks and to the screen."""
CACHE_BLOCK = 16
"""Tokens of a block of the cache."""


def expert_share(num_experts: float, experts_per_token: float, batch: float) -> float:
    """Share of a layer's experts that at least one of ``batch`` tokens meets, were the router's choices independent.

    1 for a dense model (``num_experts`` 0). Real routers have favourites, so the truth lies below.
    """
    if num_experts <= 0:
        return 1.0
    return 1 - (1 - experts_per_token / num_experts) ** batch


def bytes_read(dense_bytes: float, expert_bytes: float, share: float, kv_bytes: float, batch: float) -> float:
    """Bytes that one decoding step reads: what all tokens meet, the experts met, and each sequence's cache."""
    return dense_bytes + share * expert_bytes + batch * kv_bytes


def all_reduce_s(num_bytes: float, gpus: float, link: float, latency: float) -> float:
    """Seconds of a ring all-reduce (Patarasuk and Yuan 2009) over ``gpus``: each sends 2 (n-1)/n of the bytes at
    ``link`` bytes a second one way, in 2 (n-1) rounds of which one ``latency`` is counted, as switches fan out."""
    if gpus <= 1:
        return 0.0
    return 2 * (gpus - 1) / gpus * num_bytes / link + latency


def layer_traffic_s(tokens: float, layers: float, hidden: float, gpus: float, link: float, latency: float) -> float:
    """Seconds of the all-reduces of a forward pass: two a layer, 16-bit activations (Megatron, arXiv 1909.08053)."""
    return 2 * layers * all_reduce_s(2 * tokens * hidden, gpus, link, latency)


def decode_step_s(
    read: float,
    flops: float,
    gpus: float,
    bandwidth: float,
    peak_flops: float,
    bandwidth_efficiency: float,
    flops_efficiency: float,
    traffic_s: float,
    overhead_s: float,
) -> float:
    """Seconds of one step in which every sequence of the batch gets a token; ``flops`` of the whole batch."""
    reading = read / (gpus * bandwidth * bandwidth_efficiency)
    computing = flops / (gpus * peak_flops * flops_efficiency)
    return max(reading, computing) + traffic_s + overhead_s


def prefill_s(
    flops: float,
    read: float,
    gpus: float,
    bandwidth: float,
    peak_flops: float,
    bandwidth_efficiency: float,
    flops_efficiency: float,
    traffic_s: float,
    overhead_s: float,
) -> float:
    """Seconds to read a prompt: a step that computes ``flops`` and reads the weights once."""
    return decode_step_s(
        read, flops, gpus, bandwidth, peak_flops, bandwidth_efficiency, flops_efficiency, traffic_s, overhead_s
    )


def request_s(step_s: float, prompt_s: float, batch: float, output_tokens: float) -> float:
    """Seconds of a request among ``batch`` that run all the time.

    While one request writes its answer, each of the others ends once and is replaced, so ``batch`` prompts are read.
    """
    return output_tokens * step_s + batch * prompt_s


def token_latency_s(step_s: float, prompt_s: float, batch: float, output_tokens: float) -> float:
    """Mean seconds from token to token, with the prompts of others read in between."""
    return step_s + (batch - 1) * prompt_s / output_tokens


def capacity_rps(step_s: float, prompt_s: float, batch: float, output_tokens: float) -> float:
    """Requests a second that one replica ends with its ``batch`` full."""
    return batch / request_s(step_s, prompt_s, batch, output_tokens)


def prompt_wait_s(prompt_s: float, requests_per_s: float) -> float:
    """Mean seconds in which a prompt waits for the prompts before it: an M/D/1 queue (Pollaczek and Khinchine).

    1e9 where more prompts come than can be read.
    """
    busy = prompt_s * requests_per_s
    if busy >= 1:
        return 1e9
    return prompt_s * busy / (2 * (1 - busy))


def first_token_s(prompt_s: float, step_s: float, requests_per_s: float) -> float:
    """Mean seconds to the first token: the wait, the step that was running, the prompt itself."""
    return prompt_wait_s(prompt_s, requests_per_s) + step_s + prompt_s


def replicas(requests_per_s: float, capacity: float, headroom: float) -> float:
    """Replicas for a load of which each keeps the share ``headroom`` free for peaks; 0 for no load."""
    return ceil(requests_per_s / (capacity * (1 - headroom)))


def training_flops(
    active: float, trained_share: float, tokens: float, attention_flops: float, recomputed: float
) -> float:
    """Operations of training: 2 a weight and token forward, 2 backward for inputs, 2 more for the weights trained.

    ``attention_flops``: of one token forward, on top. ``recomputed``: 1 where checkpointing runs the forward again,
    else 0. The well-known 6 N D is ``active`` = N, all trained, without attention and recomputation (arXiv 2001.08361).
    """
    forward = 2 * active + attention_flops
    return tokens * forward * (2 + recomputed + trained_share)


def training_s(flops: float, gpus: float, peak_flops: float, utilisation: float) -> float:
    """Seconds without failures; ``utilisation`` is the share of the peak that is reached (MFU)."""
    return flops / (gpus * peak_flops * utilisation)


def checkpoint_interval_s(write_s: float, failure_s: float) -> float:
    """Seconds between checkpoints that lose least: Young 1974, the square root of twice the time to write one times
    the mean time between failures of the whole machine."""
    return (2 * write_s * failure_s) ** 0.5


def goodput(write_s: float, restart_s: float, interval_s: float, failure_s: float) -> float:
    """Share of the time that trains: without writing, and without what a failure loses (half an interval, a restart).

    0.01 where failures come faster than progress.
    """
    lost = write_s / interval_s + (interval_s / 2 + restart_s) / failure_s
    return max(0.01, 1 - lost)


def move_s(num_bytes: float, bytes_s: float, fixed_s: float) -> float:
    """Seconds to move a model's weights over one road (disk, PCIe), and a fixed part."""
    return num_bytes / bytes_s + fixed_s


def token_flops(
    active: float, looked_up: float, full_width: float, windowed_width: float, window: float, seen: float
) -> float:
    """Operations of the forward pass for a token that sees ``seen`` tokens: 2 a weight that is multiplied, 4 a number
    of a query and key. ``looked_up``: weights of an embedding that is only read. ``full_width``, ``windowed_width``:
    query widths of all layers that see everything, and of those that see the last ``window``."""
    return 2 * (active - looked_up) + 4 * full_width * seen + 4 * windowed_width * min(seen, window)


def prompt_flops(
    active: float, looked_up: float, head: float, full_width: float, windowed_width: float, window: float, tokens: float
) -> float:
    """Operations to read a prompt: the mean token sees half of it, and only the last one meets the output layer's
    ``head`` weights."""
    body = token_flops(active - head, looked_up, full_width, windowed_width, window, tokens / 2)
    return tokens * body + 2 * head
