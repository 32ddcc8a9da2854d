"""``tokenmill plan train``: operations, days, devices, money and checkpoints of a training run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tokenmill.cli.output import Json, emit
from tokenmill.cli.plan.show import Html, amount, bars, gigabytes, money, seconds, short, table
from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from tokenmill.plan.shape import Shape
    from tokenmill.plan.train import TrainPlan

EPILOG = """\b
Examples:
  tokenmill plan train llama-3.1-8b --tokens 160B --gpu h100 --gpus 64 --rent 2.69
  tokenmill plan train 7B --tokens 2T --gpu a100-80gb --days 30
  tokenmill plan train llama-3.3-70b --method qlora --tokens 20M --gpu h100
"""


def train(
    model: Annotated[str, typer.Argument(help="Catalog name, store name, file, address, or a size such as 7B.")],
    tokens: Annotated[str, typer.Option("--tokens", metavar="N", help="Tokens that are learned from: 300M, 15T.")],
    gpu: Annotated[str, typer.Option("--gpu", metavar="NAME", help="A device of the catalog.")],
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="How many; or say --days.")] = None,
    days: Annotated[float | None, typer.Option("--days", min=0.001, help="Done by then: how many devices?")] = None,
    method: Annotated[Literal["full", "lora", "qlora"], typer.Option("--method", help="What is trained.")] = "full",
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of LoRA, beside every linear layer.")] = 16,
    seq_len: Annotated[int, typer.Option("--seq-len", min=1, help="Tokens of a row.")] = 4096,
    optimizer: Annotated[str, typer.Option("--optimizer", help="adamw, adamw_8bit, muon, adafactor, sgd.")] = "adamw",
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Layers are computed again in the backward pass: a third more.")
    ] = False,
    utilisation: Annotated[
        float, typer.Option("--utilisation", min=0.01, max=1, help="Share of the data sheet's operations (MFU).")
    ] = 0.4,
    rent: Annotated[
        float | None, typer.Option("--rent", metavar="USD", help="Money a device and hour; else the catalog's.")
    ] = None,
    failure_hours: Annotated[
        float, typer.Option("--failure-hours", min=1, help="Mean time between failures of one device.")
    ] = 50_000.0,
    disk: Annotated[
        float, typer.Option("--disk", metavar="GB/S", help="Speed at which checkpoints are written.")
    ] = 2.0,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """How long, on how many devices, for how much."""
    from tokenmill.plan.catalog import gpus as gpu_catalog
    from tokenmill.plan.subject import lora_parameters, peak_flops, work
    from tokenmill.plan.train import CHECKPOINT_BYTES, Cluster, gpus_for, plan_train

    if (gpus is None) == (days is None):
        raise UsageError("either --gpus (how many there are) or --days (when it has to be done)")
    if optimizer not in CHECKPOINT_BYTES:
        from tokenmill.core.errors import did_you_mean

        near = did_you_mean(optimizer, CHECKPOINT_BYTES)
        raise UsageError(f"no optimizer {optimizer!r}{near}; known: {', '.join(CHECKPOINT_BYTES)}")
    shape, device = _shape(model), gpu_catalog().find(gpu)
    trained = None if method == "full" else lora_parameters(shape, rank)
    planned = work(shape, amount("--tokens", tokens), seq_len=seq_len, trained=trained, checkpointing=checkpointing)
    cluster = Cluster(
        gpu=device.name,
        gpus=gpus or 1,
        peak_flops=peak_flops(device, "bf16"),
        utilisation=utilisation,
        usd_gpu_hour=rent if rent is not None else _rent(device.name),
        gpu_failure_hours=failure_hours,
        disk=disk * 1e9,
    )
    if days is not None:
        cluster = replace(cluster, gpus=gpus_for(planned, cluster, days, optimizer))
    plan = plan_train(planned, cluster, optimizer)
    document = plan.as_dict() | {"method": method, "optimizer": optimizer}
    if html is not None:
        from tokenmill.plan.page.page import write_train_page

        write_train_page(html, plan, shape=shape)
        document["html"] = str(html)
    emit(document, as_json, "" if as_json else _text(plan, method))


def _shape(model: str) -> Shape:
    """A model, or the usual dimensions of a size."""
    from tokenmill.config import sizes
    from tokenmill.core.errors import TokenmillError
    from tokenmill.plan.headers import find_shape
    from tokenmill.plan.shape import given

    try:
        parameters = sizes.target_parameters(model)
    except TokenmillError:
        return find_shape(model)[0]
    vocabulary = sizes.vocabulary(parameters, None).value
    dims = sizes.dimensions(parameters, vocabulary).value
    made = given(
        hidden_size=dims.hidden_size,
        num_layers=dims.num_layers,
        num_heads=dims.num_heads,
        num_kv_heads=dims.num_kv_heads,
        intermediate_size=dims.mlp_size,
        vocab_size=vocabulary,
        context=1 << 20,
        tied_embeddings=True,
    )
    return replace(made, name=f"a model of {model}")


def _rent(gpu: str) -> float | None:
    """What one device costs an hour in the catalog of machines, if it has one that is rented."""
    from tokenmill.cli.plan.show import warn
    from tokenmill.plan.prices import machines, old_prices

    catalog = machines()
    rented = [m for m in catalog.entries.values() if m.gpu == gpu and m.rent_usd_hour is not None]
    if not rented:
        return None
    cheapest = min(rented, key=lambda m: (m.rent_usd_hour or 0.0) / m.count)
    warn(old_prices(catalog, cheapest))
    return (cheapest.rent_usd_hour or 0.0) / cheapest.count


def _text(plan: TrainPlan, method: str) -> str:
    cluster, planned = plan.cluster, plan.work
    rows = [
        ("operations", f"{plan.flops:.3g}", f"{short(planned.active)} parameters, {short(planned.tokens)} tokens"),
        ("trained", short(planned.trained), method),
        (
            "devices",
            f"{cluster.gpus} x {cluster.gpu}",
            f"at {100 * cluster.utilisation:.0f} % of {cluster.peak_flops / 1e12:,.0f} TFLOP/s",
        ),
        (
            "time",
            seconds(plan.days * 86400),
            f"{seconds(plan.compute_days * 86400)} of computing, {100 * plan.goodput:.1f} % of the time",
        ),
        ("device hours", f"{plan.gpu_hours:,.0f}", f"{plan.tokens_per_s:,.0f} tokens a second"),
        (
            "cost",
            "no price known" if plan.usd is None else money(plan.usd),
            "" if plan.usd is None else f"{money(cluster.usd_gpu_hour or 0)} a device and hour; --rent says another",
        ),
        (
            "checkpoint",
            gigabytes(plan.checkpoint_bytes),
            f"every {seconds(plan.checkpoint_every_s)} (Young 1974), {seconds(plan.checkpoint_write_s)} to write",
        ),
        ("result", gigabytes(plan.model_bytes), "16 bit"),
        ("failures", f"{plan.failures:.3g}", "expected, each costs a restart and half an interval"),
    ]
    halves = [2**n for n in range(-2, 3)]
    from tokenmill.plan.train import plan_train

    times = []
    for factor in halves:
        count = max(1, round(cluster.gpus * factor))
        other = plan_train(planned, replace(cluster, gpus=count))
        text = seconds(other.days * 86400) + ("" if other.usd is None else f", {money(other.usd)}")
        times.append((f"{count} devices", other.days, text))
    return (
        table(f"training {planned.name}", ("", "", ""), rows, words=3)
        + "\n"
        + bars("days by devices", dict.fromkeys(times))
    )
