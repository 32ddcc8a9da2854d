"""``tokenmill plan memory``: does it fit, and what is the most that does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli.output import Json, columns, emit, human_count, note

if TYPE_CHECKING:
    from tokenmill.plan.catalog import Gpu
    from tokenmill.plan.headers import Fetched
    from tokenmill.plan.memory import Method, Need, Setup
    from tokenmill.plan.shape import Shape

EPILOG = """\b
Examples:
  tokenmill plan memory llama-3.1-8b --gpu rtx-4090 --context 8192
  tokenmill plan memory qwen2.5-coder-32b --quant awq --gpu rtx-4090
  tokenmill plan memory hf:HuggingFaceTB/SmolLM2-135M --processor
  tokenmill plan memory --hidden-size 2048 --layers 24 --heads 16 --vocab-size 32000
"""
GB = 1 << 30


def memory(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Catalog or store name, config.json, folder, .gguf, .safetensors, https:// or hf:ORG/REPO."
        ),
    ] = None,
    method: Annotated[str, typer.Option(metavar="NAME,…", help="inference, full, lora, qlora, or all.")] = "all",
    quant: Annotated[
        str | None,
        typer.Option(help="Number format of the weights: awq, q4_k_m, nf4, … (default: the file's, or bf16)."),
    ] = None,
    cache: Annotated[str, typer.Option(help="Number format of the KV cache: bf16, fp8, q8_0, q4_0, fp32.")] = "bf16",
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a sequence (default: 4096, or the most.)")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once; in training, of a micro-batch.")] = 1,
    gpu: Annotated[
        str | None, typer.Option(help="A GPU of the catalog: does it fit, what is the most that does.")
    ] = None,
    usable: Annotated[float, typer.Option(min=0.1, max=1.0, help="Share of the device's memory to plan with.")] = 0.95,
    tp: Annotated[int, typer.Option(min=1, help="Tensor parallel: devices that share each layer.")] = 1,
    pp: Annotated[int, typer.Option(min=1, help="Pipeline parallel: devices that have whole layers each.")] = 1,
    dp: Annotated[int, typer.Option(min=1, help="Data parallel: devices that have a batch each.")] = 1,
    fsdp: Annotated[bool, typer.Option("--fsdp", help="Data-parallel devices share weights and states.")] = False,
    optimizer: Annotated[str, typer.Option(help="adamw, adamw-8bit, adafactor, muon, sgd.")] = "adamw",
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Layers are computed again in the backward pass.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="What is trained in: bfloat16 or float32.")] = "bfloat16",
    rank: Annotated[int, typer.Option(min=1, help="Of LoRA.")] = 16,
    targets: Annotated[str, typer.Option(metavar="NAME,…", help="LoRA on q, k, v, o, gate, up, down; or all.")] = "all",
    program: Annotated[str, typer.Option(help="Whose training: tokenmill's, or an ordinary program's.")] = "tokenmill",
    processor: Annotated[
        bool, typer.Option("--processor", help="In tokenmill's own process on a CPU, resident memory.")
    ] = False,
    hidden_size: Annotated[int | None, typer.Option(min=1, help="A model by its dimensions.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="With --hidden-size.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="With --hidden-size.")] = None,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="With --hidden-size (default: as many as heads).")] = None,
    head_dim: Annotated[int | None, typer.Option(min=1, help="With --hidden-size.")] = None,
    mlp_size: Annotated[int | None, typer.Option(min=1, help="With --hidden-size (default: 4 times it).")] = None,
    vocab_size: Annotated[int, typer.Option(min=1, help="With --hidden-size.")] = 32000,
    as_json: Json = False,
) -> None:
    """Memory of inference, full training, LoRA and QLoRA, part by part, and what fits."""
    from tokenmill.plan import memory as planning

    sizes = {"hidden_size": hidden_size, "num_layers": layers, "num_heads": heads, "num_kv_heads": kv_heads,
             "head_dim": head_dim, "intermediate_size": mlp_size}  # fmt: skip
    shape, fetched = _find(model, sizes, vocab_size, context)
    setup = _setup(shape, quant, cache, context, batch, (tp, pp, dp), fsdp, optimizer, checkpointing, dtype, rank,
                   targets, program, processor)  # fmt: skip
    methods = _methods(method)
    _check_format(setup, method)
    planning.check(shape, setup)
    device = _device(gpu, processor)
    needs = [planning.need(shape, setup, each) for each in methods]
    document = _document(shape, setup, needs, device, usable, fetched)
    if as_json:
        emit(document, True, "")
        return
    _show(shape, setup, needs, document, device, usable)


def _find(
    model: str | None, sizes: dict[str, int | None], vocab_size: int, context: int | None
) -> tuple[Shape, Fetched | None]:
    """The model that is named, or the one that is described."""
    from tokenmill.core.errors import UsageError
    from tokenmill.plan.headers import find_shape
    from tokenmill.plan.shape import given

    flags = {"num_layers": "layers", "num_heads": "heads", "num_kv_heads": "kv-heads", "intermediate_size": "mlp-size"}
    if model is None:
        if sizes["hidden_size"] is None or sizes["num_layers"] is None or sizes["num_heads"] is None:
            raise UsageError("name a MODEL, or give its dimensions: --hidden-size, --layers and --heads at least")
        return given(**sizes, vocab_size=vocab_size, context=context), None
    if named := [f"--{flags.get(key, key).replace('_', '-')}" for key, value in sizes.items() if value is not None]:
        raise UsageError(f"{', '.join(named)} describe a model without a name; leave them or {model!r} out")
    return find_shape(model)


def _document(
    shape: Shape, setup: Setup, needs: list[Need], device: Gpu | None, usable: float, fetched: Fetched | None
) -> dict[str, Any]:
    """Everything, for ``--json``."""
    from tokenmill.plan import memory as planning

    document: dict[str, Any] = {
        "model": _model_document(shape),
        "setup": _setup_document(setup),
        "needs": [each.as_dict() for each in needs],
        "answers": {each.method: _answers(shape, setup, each.method, device, usable) for each in needs},
    }
    if device is not None:
        document["device"] = {"name": device.name, "memory_gib": device.memory_gib, "usable": usable}
        for row, each in zip(document["needs"], needs, strict=True):
            row["fits"] = planning.fits(each.total, device, usable)
            row["headroom_gib"] = (device.memory * usable - each.total) / GB
    if fetched is not None:
        document["fetched"] = fetched.__dict__
        note(f"read {fetched.bytes:,} of {fetched.of:,} bytes in {fetched.requests} requests")
    return document


def _setup(
    shape: Shape, quant: str | None, cache: str, context: int | None, batch: int, splits: tuple[int, int, int],
    fsdp: bool, optimizer: str, checkpointing: bool, dtype: str, rank: int, targets: str, program: str, processor: bool,
) -> Setup:  # fmt: skip
    from tokenmill.core.errors import UsageError, did_you_mean
    from tokenmill.plan.catalog import quantisations
    from tokenmill.plan.memory import Setup

    bits = {"bfloat16": 16, "bf16": 16, "float16": 16, "float32": 32, "fp32": 32}
    if dtype not in bits:
        raise UsageError(f"no dtype {dtype!r}{did_you_mean(dtype, bits)}; bfloat16 or float32")
    if program not in ("tokenmill", "ordinary"):
        near = did_you_mean(program, ("tokenmill", "ordinary"))
        raise UsageError(f"no program {program!r}{near}; tokenmill or ordinary")
    known = quantisations()
    return Setup(
        quantisation=known.find(quant) if quant else None,
        cache_bits=known.find(cache if cache.startswith("cache-") else f"cache-{cache}").bits,
        context=context or min(4096, shape.context),
        batch=batch,
        tensor=splits[0],
        pipeline=splits[1],
        data=splits[2],
        sharded=fsdp,
        optimizer=optimizer,
        checkpointing=checkpointing,
        dtype_bits=bits[dtype],
        rank=rank,
        targets=() if targets == "all" else tuple(name.strip() for name in targets.split(",")),
        program=program,  # type: ignore[arg-type]  # checked above
        processor=processor,
    )


def _methods(given: str) -> list[Method]:
    from tokenmill.core.errors import UsageError, did_you_mean
    from tokenmill.plan.memory import METHODS

    if given == "all":
        return list(METHODS)
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in METHODS:
            raise UsageError(f"no method {name!r}{did_you_mean(name, METHODS)}; {', '.join(METHODS)}, or all")
    return [each for each in METHODS if each in names]


def _check_format(setup: Setup, method: str) -> None:
    """A number format is for what is served or for the base of QLoRA; nothing is asked for in vain."""
    from tokenmill.core.errors import UsageError

    chosen = setup.quantisation
    if chosen is None or method == "all" or "inference" in method:
        return
    if "qlora" not in method:
        raise UsageError(f"--quant {chosen.name}: {method} has weights in --dtype; inference and qlora take a format")
    if not chosen.trains or chosen.bits >= 16:
        raise UsageError(f"adapters cannot be trained over {chosen.name}; nf4-dq, nf4 and int8 can be trained over")


def _device(name: str | None, processor: bool) -> Gpu | None:
    from tokenmill.core.errors import UsageError
    from tokenmill.plan.catalog import gpus

    if name is None:
        return None
    if processor:
        raise UsageError("--processor plans for a CPU's memory; leave --gpu out")
    return gpus().find(name)


def _model_document(shape: Shape) -> dict[str, Any]:
    keys = ("name", "origin", "parameters", "active_parameters", "hidden", "layers", "heads", "kv_heads", "head_dim")
    document = {key: getattr(shape, key) for key in (*keys, "mlp", "vocab", "context", "window", "file_bytes")}
    return document | {"stored": dict(shape.stored) if shape.stored else None}


def _setup_document(setup: Setup) -> dict[str, Any]:
    from dataclasses import asdict

    document = asdict(setup)
    document["quantisation"] = setup.quantisation.name if setup.quantisation else None
    return document


def _answers(shape: Shape, setup: Setup, method: Method, device: Gpu | None, usable: float) -> dict[str, Any]:
    """What is the most, and the least."""
    from tokenmill.plan import memory as planning
    from tokenmill.plan.catalog import gpus, quantisations

    answers: dict[str, Any] = {}
    if not setup.processor:
        single = planning.smallest_gpus(shape, setup, method, gpus().entries.values(), usable)
        answers["smallest_gpu"] = [{"gpu": gpu.name, "count": count} for gpu, count in single[:3]]
    if device is None:
        return answers
    room = device.memory * usable
    answers["largest_context"] = planning.largest_context(shape, setup, method, room)
    answers["largest_batch"] = planning.largest_batch(shape, setup, method, room)
    if method in ("inference", "qlora"):
        found = planning.fitting_quantisations(shape, setup, method, quantisations().entries.values(), room)
        answers["fitting_formats"] = [{"name": q.name, "gib": size / GB} for q, size in found]
    return answers


def _show(
    shape: Shape, setup: Setup, needs: list[Need], document: dict[str, Any], device: Gpu | None, usable: float
) -> None:
    from datetime import date

    from tokenmill.cli.plan.bars import stacked
    from tokenmill.plan.catalog import gpus

    active = shape.active_parameters
    met = f", {human_count(round(active))} met by a token" if active < shape.parameters else ""
    counts = f"{human_count(round(shape.parameters))} weights{met}, {shape.layers} layers"
    print(f"{shape.name}: {counts}, {shape.heads} heads over {shape.kv_heads} ({shape.origin})")
    number = setup.quantisation.name if setup.quantisation else shape.stored_as or "bf16"
    print(f"{setup.context:,} tokens x {setup.batch}, weights served in {number}\n")
    limit = device.memory * usable / GB if device else None
    rows = [
        (each.method, {part: size / GB for part, size in each.terms.items()}, f"{each.total / GB:.2f} GiB")
        for each in needs
    ]
    stacked(rows, limit=limit)
    print()
    parts = list(dict.fromkeys(part for each in needs for part in each.terms))
    table = [
        [part, *(f"{each.terms[part] / GB:.2f}" if part in each.terms else "" for each in needs)] for part in parts
    ]
    print(columns(["GiB", *(each.method for each in needs)], table))
    print()
    for row in document["needs"]:
        if sentence := _sentence(row, document["answers"][row["method"]], device):
            print(sentence)
    if device is not None:
        for warning in gpus().stale(device, ["price_usd", "rent_usd_hour"], date.today()):
            note(warning)


def _sentence(row: dict[str, Any], answers: dict[str, Any], device: Gpu | None) -> str:
    smallest = "; ".join(
        f"{each['count']} x {each['gpu']}" if each["count"] > 1 else each["gpu"]
        for each in answers.get("smallest_gpu", [])
    )
    least = f"least: {smallest or 'nothing in the catalog holds it'}" if "smallest_gpu" in answers else ""
    if device is None:
        return f"{row['method']}: {least}" if least else ""
    verdict = (
        f"fits {device.name}, {row['headroom_gib']:.1f} GiB to spare; up to {answers['largest_context']:,} tokens, or "
        f"{answers['largest_batch']:,} sequences"
        if row["fits"]
        else f"does not fit {device.name}: {-row['headroom_gib']:.1f} GiB too much; "
        + (f"up to {answers['largest_context']:,} tokens would" if answers["largest_context"] else "no context would")
    )
    formats = answers.get("fitting_formats")
    fitting = "" if formats is None else f"; formats that fit: {', '.join(f['name'] for f in formats) or 'none'}"
    return f"{row['method']}: {verdict}{fitting}; {least}"
