"""``tokenmill plan serve``: how fast, how many at once, how many replicas; several models by the clock."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tokenmill.cli.output import Json, emit
from tokenmill.cli.plan.show import Html, bars, gigabytes, seconds, table, warn
from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from tokenmill.plan.prices import Machine
    from tokenmill.plan.schedule import Need, Schedule, Slot
    from tokenmill.plan.serve import Hardware, ServePlan, Subject

EPILOG = """\b
Examples:
  tokenmill plan serve llama-3.3-70b --quant awq --gpu rtx-5090 --gpus 2 --prompt 2048 --output 256
  tokenmill plan serve llama-3.1-8b --gpu h100 --rps 20 --token-latency 25 --first-token 500 --write plan/
  tokenmill plan serve --machine dual-rtx-5090 --slot 08:00-12:00=qwen3-coder-next:awq --slot 13:00-17:00=qwen3-32b:awq
"""

Gpu = Annotated[str | None, typer.Option("--gpu", metavar="NAME", help="A device of the catalog.")]
Gpus = Annotated[int, typer.Option("--gpus", min=1, help="Devices of a replica; they share each layer.")]
Quant = Annotated[
    str | None, typer.Option("--quant", metavar="NAME", help="Number format; else a file's own, or bf16.")
]
Cache = Annotated[
    str, typer.Option("--cache", metavar="NAME", help="Number format of the KV cache: bf16, fp8, q8_0, q4_0.")
]
Prompt = Annotated[int, typer.Option("--prompt", min=1, help="Tokens of a prompt.")]
Output = Annotated[int, typer.Option("--output", min=1, help="Tokens of an answer.")]


def serve(
    model: Annotated[str | None, typer.Argument(help="Catalog name, store name, file, address.")] = None,
    gpu: Gpu = None,
    gpus: Gpus = 1,
    quant: Quant = None,
    cache: Cache = "bf16",
    prompt: Prompt = 1024,
    output: Output = 256,
    rps: Annotated[float, typer.Option("--rps", min=0, help="Requests a second to plan for.")] = 0.0,
    token_latency: Annotated[
        float | None, typer.Option("--token-latency", metavar="MS", help="Mean time from token to token, at most.")
    ] = None,
    first_token: Annotated[
        float | None, typer.Option("--first-token", metavar="MS", help="Mean time to the first token, at most.")
    ] = None,
    headroom: Annotated[float, typer.Option(min=0, max=0.9, help="Share of the capacity to keep free.")] = 0.2,
    here: Annotated[
        bool, typer.Option("--here", help="On this machine's processor: measure it, predict, and measure the model.")
    ] = False,
    slot: Annotated[
        list[str] | None,
        typer.Option("--slot", metavar="HH:MM-HH:MM=MODEL[:QUANT]", help="By the clock; may be repeated."),
    ] = None,
    machine: Annotated[str | None, typer.Option("--machine", metavar="NAME", help="With --slot: the machine.")] = None,
    users: Annotated[int, typer.Option("--users", min=1, help="With --slot: people at once.")] = 1,
    sleep: Annotated[
        Literal["stop", "1", "2"], typer.Option("--sleep", help="With --slot: what becomes of who is not asked.")
    ] = "1",
    write: Annotated[
        Path | None, typer.Option("--write", metavar="DIR", help="Write what runs it: command, Compose, Kubernetes.")
    ] = None,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Tokens a second, requests at once and replicas, from bandwidth and operations."""
    if slot:
        if model is not None or here or gpu is not None or machine is None:
            raise UsageError(
                "--slot plans a --machine by the clock: give --machine NAME, and neither MODEL, --gpu nor --here"
            )
        _by_the_clock(slot, machine, quant, cache, prompt + output, users, sleep, write, html, as_json)
        return
    if model is None or machine is not None:
        raise UsageError("a MODEL and its --gpu, or --slot with --machine")
    from tokenmill.plan.serve import Wanted, plan_serve
    from tokenmill.plan.subject import free_bytes

    wanted = Wanted(
        rps,
        None if token_latency is None else token_latency / 1e3,
        None if first_token is None else first_token / 1e3,
        headroom,
    )
    if here:
        if gpu is not None or gpus != 1 or quant is not None:
            raise UsageError(
                "--here is this machine's processor and the model's own file: without --gpu, --gpus, --quant"
            )
        subject, device, measured = _measured(model, prompt, output)
    else:
        if gpu is None:
            raise UsageError("--gpu NAME says on what, or --here for this machine's processor")
        subject, device, measured = *_of_catalog(model, gpu, gpus, quant, cache, prompt, output), {}
    plan = plan_serve(subject, device, free_bytes(subject, device), wanted)
    document: dict[str, Any] = plan.as_dict() | measured
    if write is not None:
        document["written"] = [str(path) for path in _write(plan, model, here, write)]
    if html is not None:
        from tokenmill.plan.page.page import write_serve_page

        write_serve_page(html, plan, model=model, gpu=gpu, quant=quant, load=rps)
        document["html"] = str(html)
    emit(document, as_json, "" if as_json else _text(plan, rps, measured))


def _of_catalog(
    model: str, gpu: str, gpus: int, quant: str | None, cache: str, prompt: int, output: int
) -> tuple[Subject, Hardware]:
    from tokenmill.plan.catalog import gpus as gpu_catalog
    from tokenmill.plan.catalog import quantisations
    from tokenmill.plan.headers import find_shape
    from tokenmill.plan.subject import hardware, subject

    shape, _ = find_shape(model)
    catalog, devices = quantisations(), gpu_catalog()
    own = shape.stored_bytes if quant is None else None
    number_format = catalog.find(quant or "bf16")
    device = hardware(devices.find(gpu), gpus, number_format.name)
    return (
        subject(
            shape,
            number_format,
            prompt_tokens=prompt,
            output_tokens=output,
            cache_bits=catalog.find(f"cache-{cache}").bits,
            gpus=gpus,
            weight_bytes=None if own is None else float(own),
        ),
        device,
    )


def _measured(model: str, prompt: int, output: int) -> tuple[Subject, Hardware, dict[str, Any]]:
    from tokenmill.plan.here import measure_here

    found = measure_here(model, prompt, output)
    return found.subject, found.hardware, {"here": found.as_dict()}


def _text(plan: ServePlan, rps: float, measured: dict[str, Any]) -> str:
    point, many = plan.point, f"{plan.hardware.gpus} x {plan.hardware.name}"
    lines = [
        (
            "one user alone",
            f"{plan.decode_tok_s:.0f} tokens a second; a prompt of {plan.subject.prompt_tokens:,} tokens in "
            f"{seconds(plan.prompt_s)} ({plan.prefill_tok_s:,.0f} a second)",
        ),
        ("at once", f"{point.batch} of at most {plan.largest_batch} that memory holds; limited by {plan.limited_by}"),
        (
            "then",
            f"{1 / point.token_latency_s:.0f} tokens a second for each, {point.tokens_per_s:,.0f} for all together",
        ),
        (
            "load of a replica",
            f"{plan.requests_per_s:.3g} requests a second, {plan.concurrency:.3g} at a time, first token "
            f"after {seconds(plan.first_token_s)}",
        ),
    ]
    if rps:
        lines.append(
            (
                "replicas",
                f"{plan.replicas} for {rps:g} requests a second, {plan.replicas * plan.hardware.gpus} devices",
            )
        )
    if measured:
        real = measured["here"]
        lines.append(
            (
                "measured",
                f"{real['measured_tok_s']:.1f} tokens a second, {100 * real['error']:+.0f} % is the prediction off",
            )
        )
    rows = [
        (
            str(p.batch),
            seconds(p.token_latency_s),
            f"{1 / p.token_latency_s:.0f}",
            f"{p.tokens_per_s:,.0f}",
            f"{p.requests_per_s:.3g}",
        )
        for p in plan.points
    ]
    head = ("at once", "token to token", "tokens/s each", "tokens/s all", "requests/s")
    title = f"{plan.subject.name}, {gigabytes(plan.subject.weight_bytes)} of weights, on {many}"
    return (
        table(title, ("", ""), lines, words=2)
        + "\n"
        + table("by requests at once", head, rows, words=0)
        + "\n"
        + bars(
            "tokens a second, all together",
            [(str(p.batch), p.tokens_per_s, f"{p.tokens_per_s:,.0f}") for p in plan.points],
        )
    )


def _write(plan: ServePlan, model: str, here: bool, folder: Path) -> list[Path]:
    from tokenmill.plan.emit import Service, command, compose, kubernetes

    device = plan.hardware
    service = Service(
        model=model,
        engine="vllm" if device.gpus > 1 else "tokenmill",
        context=plan.subject.context,
        batch=plan.point.batch,
        gpus=0 if here else device.gpus,
        replicas=plan.replicas,
        memory_gb=1.05 * plan.subject.weight_bytes / 1e9,
    )
    return _put(
        folder,
        {
            "serve.sh": f"#!/bin/sh\nexec {command(service)}\n",
            "compose.yaml": compose(service),
            "kubernetes.yaml": kubernetes(service),
        },
    )


def _put(folder: Path, files: dict[str, str]) -> list[Path]:
    from tokenmill.core.paths import atomic_write

    written = []
    for name, text in files.items():
        with atomic_write(folder / name) as file:
            file.write(text.encode())
        written.append(folder / name)
    return written


# --- by the clock


def _by_the_clock(
    slots: Sequence[str],
    machine: str,
    quant: str | None,
    cache: str,
    context: int,
    users: int,
    level: Literal["stop", "1", "2"],
    write: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    from tokenmill.plan.catalog import gpus as gpu_catalog
    from tokenmill.plan.prices import machines, old_prices
    from tokenmill.plan.schedule import Roads, Slot, parse_slot, plan_schedule

    if html is not None:
        raise UsageError("--html is for one model; a schedule is a table (or --json)")
    catalog = machines()
    found = catalog.find(machine)
    warn(old_prices(catalog, found))
    device = gpu_catalog().find(found.gpu)
    parsed = [parse_slot(text) for text in slots]
    planned = [Slot(begin, end, _need(model, quant, cache, context, users, found)) for begin, end, model in parsed]
    roads = Roads(
        devices=found.count,
        device_memory=device.memory,
        host_memory=found.host_memory_gib * 2**30,
        disk=found.disk_gb_s * 1e9,
        host_link=found.host_link_gb_s * 1e9,
    )
    plan = plan_schedule(planned, roads, level)
    document = plan.as_dict()
    if write is not None:
        document["written"] = [str(path) for path in _write_day(plan, planned, found.count, context, users, write)]
    emit(document, as_json, "" if as_json else _day_text(plan, planned, found))
    if not plan.fits:
        raise typer.Exit(1)


def _need(text: str, quant: str | None, cache: str, context: int, users: int, machine: Machine) -> Need:
    """What ``MODEL`` or ``MODEL:QUANT`` takes on a machine."""
    from tokenmill.plan.catalog import models, quantisations
    from tokenmill.plan.headers import find_shape
    from tokenmill.plan.rates import DEVICE_OVERHEAD
    from tokenmill.plan.schedule import Need
    from tokenmill.plan.subject import subject

    catalog = quantisations()
    name, _, tail = text.rpartition(":")
    known = {key for key, entry in catalog.entries.items() for key in (key, *entry.aliases)}
    # a colon may also belong to the model's name (smollm2:135m)
    if not name or (tail not in known and any(text in (m.name, *m.aliases) for m in models().entries.values())):
        name, tail = text, quant or "bf16"
    shape, _ = find_shape(name)
    found = subject(
        shape,
        catalog.find(tail),
        prompt_tokens=context - 1,
        output_tokens=1,
        cache_bits=catalog.find(f"cache-{cache}").bits,
        gpus=machine.count,
    )
    return Need(f"{shape.name}:{tail}", found.weight_bytes, users * found.kv_bytes, DEVICE_OVERHEAD)


def _day_text(plan: Schedule, slots: Sequence[Slot], machine: Machine) -> str:
    from tokenmill.plan.schedule import LEVELS, clock

    needs = {slot.need.name: slot.need for slot in slots}
    rows = [
        (name, gigabytes(n.weights), gigabytes(n.cache), gigabytes((n.weights + n.cache) / machine.count + n.overhead))
        for name, n in needs.items()
    ]
    stretches = [
        (
            f"{clock(s.begin)}-{clock(s.end)}",
            ", ".join(s.awake),
            ", ".join(s.asleep) or "nobody",
            gigabytes(s.device_bytes),
            gigabytes(s.device_free),
            gigabytes(s.host_bytes),
            gigabytes(s.host_free),
            "yes" if s.fits else "NO",
        )
        for s in plan.stretches
    ]
    switches = [
        (
            clock(s.at),
            ", ".join(s.leaves) or "nobody",
            ", ".join(s.enters),
            *(seconds(s.seconds[level]) for level in LEVELS),
        )
        for s in plan.switches
    ]
    starts = [(name, seconds(value)) for name, value in plan.start_s.items()]
    head = ("from - to", "awake", "asleep", "each device", "free", "host", "free", "fits")
    return (
        table(f"on {machine.name}: {machine.count} x {machine.gpu}", ("model", "weights", "cache", "each device"), rows)
        + "\n"
        + table(f"by the clock ({LEVELS[plan.level]})", head, stretches, words=3)
        + "\n"
        + table("once, before the first day", ("model", "start"), starts)
        + "\n"
        + table(
            "switching, every day",
            ("at", "leaves", "enters", "stop and start", "level 1", "level 2"),
            switches,
            words=3,
        )
    )


def _write_day(plan: Schedule, slots: Sequence[Slot], gpus: int, context: int, users: int, folder: Path) -> list[Path]:
    from tokenmill.plan.emit import Service, command, switches

    names = list(dict.fromkeys(slot.need.name for slot in slots))
    ports = {name: 8000 + n for n, name in enumerate(names)}
    files = {}
    for name, port in ports.items():
        service = Service(name.rpartition(":")[0], "vllm", context, users, gpus, 1, 0.0)
        words = command(service).replace("0.0.0.0", "127.0.0.1")
        sleepy = "" if plan.level == "stop" else " --enable-sleep-mode"
        start = f"#!/bin/sh\nexport VLLM_SERVER_DEV_MODE=1\nexec {words} --port {port}{sleepy}\n"
        files[f"serve-{port}.sh"] = start
    if plan.level != "stop":
        files["switch.crontab"] = switches(plan, ports)
    return _put(folder, files)
