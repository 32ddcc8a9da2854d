"""``plan train``: operations, days, devices, money and checkpoints of a training run, by ``plan/rates.py``.

Utilisation is the share of the data sheet's dense operations that a run reaches, what checkpointing computes again
included (without it this is the MFU of papers). Good runs of dense models reach 0.4 to 0.5: nanochat 0.50 on 8 H100
(its leaderboard), torchtitan 0.33 to 0.39 for Llama-3.1-8B on H100, OLMo 2 32B 0.38.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from tokenmill.core.errors import UsageError
from tokenmill.plan import rates

Method = Literal["full", "lora", "qlora"]
UTILISATION = 0.4
DAY = 86400.0
CHECKPOINT_BYTES = {"adamw": 14.0, "adamw_8bit": 8.1, "muon": 10.0, "adafactor": 6.1, "sgd": 6.0}
"""A trained weight: 2 in bfloat16, 4 of a float32 master, and the optimiser's state (8, 2.1, 4, 0.1, none)."""


@dataclass(frozen=True)
class Work:
    """What is trained, and on how much."""

    name: str
    parameters: float
    active: float
    """Parameters that a token is multiplied with: no embedding look-up, and of experts those it meets."""
    attention_flops: float
    """Of one token forward, beside the weights."""
    tokens: float
    trained: float
    """Parameters that change: all, or an adapter's."""
    checkpointing: bool = False


@dataclass(frozen=True)
class Cluster:
    """Devices that train together."""

    gpu: str
    gpus: int
    peak_flops: float
    """Of one, dense, in the format that is trained in."""
    utilisation: float = UTILISATION
    usd_gpu_hour: float | None = None
    gpu_failure_hours: float = 50_000.0
    """Mean time between failures of one device with its share of the machine: Llama 3 counted 419 interruptions of
    16,384 GPUs in 54 days (arXiv 2407.21783, section 3.3.4), one in 50,700 hours each."""
    disk: float = 2e9
    """Bytes a second at which a checkpoint is written, over all machines."""
    restart_s: float = 600.0
    """From a failure to the next step: noticing, replacing, loading."""


@dataclass(frozen=True)
class TrainPlan:
    """What ``plan train`` answers."""

    work: Work
    cluster: Cluster
    flops: float
    compute_days: float
    days: float
    """With checkpoints, failures and restarts."""
    goodput: float
    tokens_per_s: float
    gpu_hours: float
    usd: float | None
    model_bytes: float
    """What is kept of the model at the end, 16 bit; an adapter alone where one is trained."""
    checkpoint_bytes: float
    """To go on from: weights, master weights, optimiser."""
    checkpoint_write_s: float
    checkpoint_every_s: float
    failures: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return asdict(self)


def flops_of(work: Work) -> float:
    """Operations of the whole run."""
    return rates.training_flops(
        work.active,
        min(1.0, work.trained / work.parameters),
        work.tokens,
        work.attention_flops,
        1.0 if work.checkpointing else 0.0,
    )


def plan_train(work: Work, cluster: Cluster, optimizer: str = "adamw") -> TrainPlan:
    """The plan of one run on one cluster."""
    flops = flops_of(work)
    seconds = rates.training_s(flops, cluster.gpus, cluster.peak_flops, cluster.utilisation)
    checkpoint = work.trained * CHECKPOINT_BYTES[optimizer]
    write = checkpoint / cluster.disk
    failure_s = cluster.gpu_failure_hours * 3600 / cluster.gpus
    # a run that is over long before anything fails needs no more than one at its end
    every = min(rates.checkpoint_interval_s(write, failure_s), max(seconds, write))
    good = rates.goodput(write, cluster.restart_s, every, failure_s)
    whole = seconds / good
    hours = whole / 3600 * cluster.gpus
    return TrainPlan(
        work=work,
        cluster=cluster,
        flops=flops,
        compute_days=seconds / DAY,
        days=whole / DAY,
        goodput=good,
        tokens_per_s=work.tokens / whole,
        gpu_hours=hours,
        usd=None if cluster.usd_gpu_hour is None else hours * cluster.usd_gpu_hour,
        model_bytes=2 * work.trained,
        checkpoint_bytes=checkpoint,
        checkpoint_write_s=write,
        checkpoint_every_s=every,
        failures=whole / failure_s,
    )


def gpus_for(work: Work, cluster: Cluster, days: float, optimizer: str = "adamw") -> int:
    """The fewest devices that end within ``days``: more of them fail more often, so they are tried, not divided.

    Raises:
        UsageError: so many would be needed that failures eat what they add.
    """

    def in_time(gpus: int) -> bool:
        return plan_train(work, replace(cluster, gpus=gpus), optimizer).days <= days

    # without failures it would be this many, so fewer are too few
    few = max(0, math.ceil(flops_of(work) / (days * DAY * cluster.peak_flops * cluster.utilisation)) - 1)
    many = few + 1
    while not in_time(many):
        if many > 4 * few + 16:
            raise UsageError(f"{days:g} days are too few for {work.name}: failures eat what more devices add")
        few, many = many, math.ceil(many * 1.1)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if in_time(middle) else (middle, many)
    return many
