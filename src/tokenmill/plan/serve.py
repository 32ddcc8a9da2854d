"""``plan serve``: how fast a model answers on given devices, how many it serves at once, and how many replicas a load
takes.

The formulas are those of ``plan/rates.py``. A replica is ``gpus`` devices that hold one copy of the weights. Its batch
is the largest that memory holds and that the wanted time from token to token allows; its load is the largest whose
mean time to the first token is as wanted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from tokenmill.core.errors import UsageError
from tokenmill.plan import rates

LINK_LATENCY_S = {"pcie": 30e-6, "nvlink": 10e-6, "fabric": 10e-6, "none": 0.0}
"""Of an all-reduce of few bytes."""
MOST_BATCH = 1024


@dataclass(frozen=True)
class Subject:
    """What is served: the bytes and operations that follow from a model and its number format."""

    name: str
    parameters: float
    active_parameters: float
    weight_bytes: float
    """All that has to be in memory."""
    read_bytes: float
    """Of those, what every token reads, whoever it is (without experts, and without an embedding table of its own)."""
    expert_bytes: float
    """Of all experts together."""
    num_experts: int
    experts_per_token: int
    kv_bytes: float
    """Of one sequence of ``context`` tokens."""
    kv_read_bytes: float
    """That a step reads of one sequence, half-way through its answer."""
    decode_flops: float
    """Of one token half-way through the answer."""
    prefill_flops: float
    """Of the whole prompt."""
    layers: int
    hidden: int
    prompt_tokens: int
    output_tokens: int

    @property
    def context(self) -> int:
        """Tokens of prompt and answer."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True)
class Hardware:
    """One replica's devices; figures of one of them, from the catalog or measured here."""

    name: str
    gpus: int
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes a second."""
    peak_flops: float
    """Operations a second in the format that products are computed in."""
    link: float
    """Bytes a second to another device, one way; 0 for none."""
    link_latency_s: float
    bandwidth_efficiency: float = rates.BANDWIDTH_EFFICIENCY
    flops_efficiency: float = rates.FLOPS_EFFICIENCY
    overhead_s: float = rates.STEP_OVERHEAD_S


@dataclass(frozen=True)
class Wanted:
    """The load, and what a person waits for."""

    requests_per_s: float = 0.0
    token_latency_s: float | None = None
    """Mean seconds from token to token."""
    first_token_s: float | None = None
    """Mean seconds to the first token."""
    headroom: float = 0.2
    """Share of a replica's capacity that stays free."""


@dataclass(frozen=True)
class Point:
    """A batch size and what comes of it."""

    batch: int
    step_s: float
    token_latency_s: float
    request_s: float
    requests_per_s: float
    """With the batch always full."""
    tokens_per_s: float
    """Written by all sequences together, prompts read in between."""
    fits: bool


@dataclass(frozen=True)
class ServePlan:
    """What ``plan serve`` answers."""

    subject: Subject
    hardware: Hardware
    decode_tok_s: float
    """At batch 1, nobody else there."""
    prefill_tok_s: float
    prompt_s: float
    largest_batch: int
    """That memory holds."""
    point: Point
    """The batch that is run."""
    limited_by: str
    requests_per_s: float
    """One replica's load, with headroom and the first token in time."""
    first_token_s: float
    """At that load."""
    concurrency: float
    """Requests in a replica at that load (Little's law)."""
    replicas: int
    points: tuple[Point, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return asdict(self) | {"gpus": self.replicas * self.hardware.gpus}


def plan_serve(subject: Subject, hardware: Hardware, free_bytes: float, wanted: Wanted) -> ServePlan:
    """The plan of one model on one kind of replica; ``free_bytes`` are left for caches over all its devices.

    Raises:
        UsageError: not one sequence fits; a latency that even one sequence does not reach.
    """
    memory_batch = min(MOST_BATCH, int(free_bytes / subject.kv_bytes)) if subject.kv_bytes else MOST_BATCH
    if memory_batch < 1:
        raise UsageError(
            f"{subject.name} leaves {free_bytes / 1e9:.1f} GB on {hardware.gpus} x {hardware.name}, and one sequence "
            f"of {subject.context} tokens needs {subject.kv_bytes / 1e9:.2f} GB: a shorter context, more devices "
            "(--gpus) or a smaller number format (--quant)"
        )
    prompt_s = prefill_seconds(subject, hardware)
    alone = point(subject, hardware, 1, memory_batch)
    batch, limited_by = _largest(subject, hardware, memory_batch, wanted)
    chosen = point(subject, hardware, batch, memory_batch)
    load = chosen.requests_per_s * (1 - wanted.headroom)
    if wanted.first_token_s is not None:
        in_time = _load_in_time(wanted.first_token_s, prompt_s, chosen.step_s)
        if in_time < load:
            load, limited_by = in_time, "time to the first token"
    first = rates.first_token_s(prompt_s, chosen.step_s, load)
    replicas = math.ceil(wanted.requests_per_s / load) if wanted.requests_per_s else 1
    shown = sorted({*_powers(memory_batch), batch, memory_batch})
    return ServePlan(
        subject=subject,
        hardware=hardware,
        decode_tok_s=1 / alone.step_s,
        prefill_tok_s=subject.prompt_tokens / prompt_s,
        prompt_s=prompt_s,
        largest_batch=memory_batch,
        point=chosen,
        limited_by=limited_by,
        requests_per_s=load,
        first_token_s=first,
        concurrency=load * chosen.request_s,
        replicas=replicas,
        points=tuple(point(subject, hardware, size, memory_batch) for size in shown),
    )


def _powers(most: int) -> Iterable[int]:
    return (2**n for n in range(11) if 2**n <= most)


def prefill_seconds(subject: Subject, hardware: Hardware) -> float:
    """Seconds to read one prompt alone."""
    h = hardware
    tokens = subject.prompt_tokens
    share = rates.expert_share(subject.num_experts, subject.experts_per_token, tokens)
    traffic = rates.layer_traffic_s(tokens, subject.layers, subject.hidden, h.gpus, h.link or 1, h.link_latency_s)
    return rates.prefill_s(
        subject.prefill_flops,
        rates.bytes_read(subject.read_bytes, subject.expert_bytes, share, 0, 1),
        h.gpus,
        h.bandwidth,
        h.peak_flops,
        h.bandwidth_efficiency,
        h.flops_efficiency,
        traffic,
        h.overhead_s,
    )


def step_seconds(subject: Subject, hardware: Hardware, batch: int) -> float:
    """Seconds of a decoding step of ``batch`` sequences half-way through their answers."""
    h = hardware
    share = rates.expert_share(subject.num_experts, subject.experts_per_token, batch)
    traffic = rates.layer_traffic_s(batch, subject.layers, subject.hidden, h.gpus, h.link or 1, h.link_latency_s)
    return rates.decode_step_s(
        rates.bytes_read(subject.read_bytes, subject.expert_bytes, share, subject.kv_read_bytes, batch),
        batch * subject.decode_flops,
        h.gpus,
        h.bandwidth,
        h.peak_flops,
        h.bandwidth_efficiency,
        h.flops_efficiency,
        traffic,
        h.overhead_s,
    )


def point(subject: Subject, hardware: Hardware, batch: int, memory_batch: int) -> Point:
    """What a batch size gives."""
    step, prompt = step_seconds(subject, hardware, batch), prefill_seconds(subject, hardware)
    request = rates.request_s(step, prompt, batch, subject.output_tokens)
    rate = rates.capacity_rps(step, prompt, batch, subject.output_tokens)
    return Point(
        batch=batch,
        step_s=step,
        token_latency_s=rates.token_latency_s(step, prompt, batch, subject.output_tokens),
        request_s=request,
        requests_per_s=rate,
        tokens_per_s=rate * subject.output_tokens,
        fits=batch <= memory_batch,
    )


def _largest(subject: Subject, hardware: Hardware, most: int, wanted: Wanted) -> tuple[int, str]:
    """The largest batch in time, by halving: the time from token to token rises with the batch."""
    target = wanted.token_latency_s
    if target is None or point(subject, hardware, most, most).token_latency_s <= target:
        return most, "memory" if most < MOST_BATCH else f"the batch of {MOST_BATCH} at most"
    alone = point(subject, hardware, 1, most).token_latency_s
    if alone > target:
        raise UsageError(
            f"{subject.name} on {hardware.gpus} x {hardware.name} takes {alone * 1e3:.1f} ms a token even alone, more "
            f"than the {target * 1e3:g} ms wanted: more devices (--gpus), or a smaller number format (--quant)"
        )
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        if point(subject, hardware, middle, most).token_latency_s <= target:
            low = middle
        else:
            high = middle
    return low, "time from token to token"


def _load_in_time(target: float, prompt_s: float, step_s: float) -> float:
    """Requests a second at which :func:`rates.first_token_s` is ``target``: Pollaczek and Khinchine, solved."""
    wait = target - prompt_s - step_s
    if wait <= 0:
        raise UsageError(
            f"the first token takes {1e3 * (prompt_s + step_s):.0f} ms with nobody waiting, more than the "
            f"{1e3 * target:g} ms wanted: more devices (--gpus), or a shorter prompt (--prompt)"
        )
    return 2 * wait / (prompt_s + 2 * wait) / prompt_s
