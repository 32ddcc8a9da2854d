"""The page's sliders and lists: each figure of ``sheet.py`` has one place here that says where its value comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from tokenmill.plan import catalog, prices
from tokenmill.plan.fit import REFITTED, Law
from tokenmill.plan.serve import LINK_LATENCY_S
from tokenmill.plan.shape import Shape, from_catalog
from tokenmill.plan.subject import looked_up, peak_flops, widths


@dataclass(frozen=True)
class Slider:
    """A number that the person moves."""

    name: str
    label: str
    unit: str
    low: float
    high: float
    value: float
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Choice:
    """A list; each option sets several figures at once."""

    name: str
    label: str
    options: Mapping[str, Mapping[str, float]]
    value: str


@dataclass(frozen=True)
class Section:
    """A sheet with its controls."""

    name: str
    title: str
    sheet: str
    """A function of ``sheet.py``."""
    choices: tuple[Choice, ...]
    sliders: tuple[Slider, ...]


FILES_OWN = "as the file has them"
FIRST = {"model": "llama-3.1-8b", "quant": "awq", "cache": "bf16", "gpu": "rtx-4090", "api": "gpt-4o"}
"""What stands in the lists until a verb says otherwise."""


SERVING = (
    Slider("gpus", "devices of a replica", "", 1, 16, 1, whole=True),
    Slider("prompt", "tokens of a prompt", "", 16, 131072, 1024, log=True, whole=True),
    Slider("output", "tokens of an answer", "", 8, 16384, 256, log=True, whole=True),
    Slider("users", "requests at once", "", 1, 512, 4, log=True, whole=True),
    Slider("load", "requests a second, all replicas", "", 0, 100, 0),
)
COSTING = (
    Slider("tokens_a_day", "tokens a day", "", 1e4, 1e10, 1e7, log=True),
    Slider("output_share", "share that is written", "", 0, 1, 0.25),
    Slider("cached_share", "share of the read ones that is cached", "", 0, 1, 0),
    Slider("machine_tokens_s", "tokens a second of a machine", "", 10, 100000, 2000, log=True),
    Slider("on_hours", "hours a day", "h", 1, 24, 24),
    Slider("years", "years of use", "", 1, 8, 3),
    Slider("residual_share", "worth then, of its price", "", 0, 1, 0.2),
    Slider("interest", "interest a year", "", 0, 0.2, 0.05),
    Slider("price_kwh", "electricity a kWh", "$", 0, 0.6, 0.12),
    Slider("power_overhead", "building's power over the machine's", "", 1, 2, 1),
    Slider("peak_factor", "busiest hour over the mean", "", 1, 10, 3),
    Slider("staff_month", "people's time a month", "$", 0, 20000, 0),
)
TRAINING = (
    Slider("train_tokens", "tokens learned from", "", 1e6, 1e14, 1.6e11, log=True),
    Slider("train_gpus", "devices", "", 1, 16384, 8, log=True, whole=True),
    Slider("utilisation", "share of the data sheet's operations", "", 0.05, 0.7, 0.4),
    Slider("gpu_hour", "a device and hour", "$", 0, 10, 2.69),
    Slider("seq_len", "tokens of a row", "", 256, 131072, 4096, log=True, whole=True),
)
SCALING = (Slider("budget", "operations of training", "", 1e15, 1e27, 1e21, log=True),)
"""Sliders of each section, as they stand until a verb says otherwise."""


def of_shape(shape: Shape) -> dict[str, float]:
    """A model's figures."""
    full, windowed = widths(shape)
    return {
        "parameters": shape.parameters,
        "active": shape.active_parameters,
        "expert_parameters": shape.expert_parameters,
        "table": shape.table,
        "head": float(shape.vocab * shape.hidden),
        "looked_up": looked_up(shape),
        "full_width": full,
        "windowed_width": windowed,
        "window": float(shape.window),
        "full_values": shape.full_values,
        "windowed_values": shape.windowed_values,
        "state_values": shape.state_values,
        "num_experts": float(shape.num_experts),
        "experts_per_token": float(shape.experts_per_token),
        "layers": float(shape.layers),
        "hidden": float(shape.hidden),
        "kv_heads": float(shape.kv_heads),
        "latent": float(shape.latent),
    }


def of_gpu(gpu: catalog.Gpu) -> dict[str, float]:
    """A device's figures. Operations are those of bfloat16, in which 4-bit weights are multiplied too."""
    return {
        "memory": gpu.memory,
        "bandwidth": gpu.bandwidth_gb_s * 1e9,
        "peak_flops": peak_flops(gpu, "bf16"),
        "link": gpu.link_gb_s * 1e9,
        "link_latency": LINK_LATENCY_S[gpu.link],
    }


def of_machine(machine: prices.Machine) -> dict[str, float]:
    """A machine's prices and power."""
    return {
        "machine_price": machine.price_usd or 0.0,
        "rent_hour": machine.rent_usd_hour or 0.0,
        "month_fee": machine.month_usd or 0.0,
        "busy_w": machine.busy_w,
        "idle_w": machine.idle_w,
    }


def sections(
    chosen: Mapping[str, str],
    values: Mapping[str, float],
    model: Shape | None = None,
    law: Law = REFITTED,
    own_bits: float | None = None,
) -> list[Section]:
    """All sections. ``chosen``: options by list, ``values``: figures by slider; a ``model`` that is not in the catalog
    is put first into its list, and ``own_bits`` a weight of its file into that of formats."""
    models = {entry.name: of_shape(from_catalog(entry)) for entry in catalog.models().entries.values()}
    if model is not None and model.name not in models:
        models = {model.name: of_shape(model)} | models
    formats = catalog.quantisations().entries
    quants = {n: {"bits": f.bits, "table_bits": f.embedding_bits} for n, f in formats.items() if f.kind == "weights"}
    if own_bits is not None:
        quants = {FILES_OWN: {"bits": own_bits, "table_bits": own_bits}} | quants
    caches = {name.removeprefix("cache-"): {"cache_bits": f.bits} for name, f in formats.items() if f.kind == "cache"}
    devices = {name: of_gpu(gpu) for name, gpu in catalog.gpus().entries.items()}
    apis = {
        name: {"input_price": a.input_usd, "output_price": a.output_usd, "cached_price": a.cached}
        for name, a in prices.apis().entries.items()
    }
    machines = {name: of_machine(m) for name, m in prices.machines().entries.items()}
    first = {**FIRST, "machine": "dual-rtx-5090", **chosen}

    def choice(name: str, label: str, options: Mapping[str, Mapping[str, float]]) -> Choice:
        return Choice(name, label, options, first[name])

    def placed(sliders: tuple[Slider, ...]) -> tuple[Slider, ...]:
        found = [(slider, values.get(slider.name, slider.value)) for slider in sliders]
        return tuple(replace(s, value=now, low=min(s.low, now), high=max(s.high, now)) for s, now in found)

    machine = (
        choice("model", "model", models),
        choice("quant", "weights as", quants),
        choice("cache", "cache as", caches),
        choice("gpu", "device", devices),
    )
    bills = (choice("api", "API", apis), choice("machine", "machine", machines))
    return [
        Section("serving", "Memory and speed", "serving", machine, placed(SERVING)),
        Section("costing", "API or own machines", "costing", bills, placed(COSTING)),
        Section("training", "Training the model", "training", (), placed(TRAINING)),
        Section("scaling", "Size and tokens for a budget", "scaling", (choice_of_law(law),), placed(SCALING)),
    ]


def choice_of_law(law: Law) -> Choice:
    """The published law and, where there is one, the person's own."""
    options = {"Chinchilla, fitted again": asdict(REFITTED)}
    if law is not REFITTED:
        options = {"fitted to your runs": asdict(law)} | options
    return Choice("law", "law", options, next(iter(options)))
