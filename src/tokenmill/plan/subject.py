"""From a model's shape, a number format and a device to what the plans of serving and training compute with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tokenmill.core.errors import UsageError
from tokenmill.plan import formulas, rates
from tokenmill.plan.catalog import Gpu, Quantisation
from tokenmill.plan.serve import LINK_LATENCY_S, Hardware, Subject
from tokenmill.plan.shape import Shape
from tokenmill.plan.train import Work


def looked_up(shape: Shape) -> float:
    """Weights of an embedding table that has an output layer beside it: of those a token reads one row."""
    one = shape.vocab * shape.hidden
    return one if shape.table > 1.5 * one else 0.0


def widths(shape: Shape) -> tuple[float, float]:
    """Query widths of all layers that see everything, and of those with a window."""
    cached = shape.full_values + shape.windowed_values
    if shape.latent or not cached:
        return float(shape.query * shape.layers), 0.0
    attending = cached / (2 * shape.key)
    windowed = attending * shape.windowed_values / cached
    return shape.query * (attending - windowed), shape.query * windowed


def weights_of(shape: Shape, quantisation: Quantisation) -> float:
    """Bytes; of a file's own where it is asked for as it is."""
    return formulas.weight_bytes(shape.parameters, shape.table, quantisation.bits, quantisation.embedding_bits)


def check_split(shape: Shape, gpus: int) -> None:
    """UsageError where tensor parallelism over ``gpus`` does not divide the heads, with the nearest that does."""
    if shape.heads % gpus:
        able = [n for n in range(1, shape.heads + 1) if shape.heads % n == 0]
        near = min(able, key=lambda n: (abs(n - gpus), n))
        raise UsageError(
            f"{gpus} GPUs cannot share {shape.heads} attention heads of {shape.name} evenly; {near} can (of {able})"
        )


def check_context(shape: Shape, context: int) -> None:
    """UsageError where a context is beyond the model."""
    if context > shape.context:
        raise UsageError(f"{context:,} tokens are beyond {shape.name}'s {shape.context:,}; that is its longest context")


def subject(
    shape: Shape,
    quantisation: Quantisation,
    *,
    prompt_tokens: int,
    output_tokens: int,
    cache_bits: float = 16,
    gpus: int = 1,
    weight_bytes: float | None = None,
) -> Subject:
    """What is served on ``gpus`` devices that share each layer. ``weight_bytes``: where a file's header says them.

    Raises:
        UsageError: a context beyond the model, heads that the devices do not divide.
    """
    check_split(shape, gpus)
    check_context(shape, prompt_tokens + output_tokens)
    weights = weights_of(shape, quantisation) if weight_bytes is None else weight_bytes
    mean_bits = 8 * weights / shape.parameters
    # with more devices than key/value heads, heads are on several of them: as bytes, the cache grows
    copies = gpus * formulas.cache_share(shape.kv_heads, gpus, float(shape.latent))
    full, windowed = widths(shape)
    lookup, head = looked_up(shape), float(shape.vocab * shape.hidden)
    middle = prompt_tokens + output_tokens / 2

    def cache(length: float) -> float:
        values = formulas.sequence_values(
            shape.full_values, shape.windowed_values, shape.window, shape.state_values, length
        )
        return copies * formulas.cache_bytes(values, 1, cache_bits)

    experts = shape.expert_parameters * (quantisation.bits if weight_bytes is None else mean_bits) / 8
    table_bits = quantisation.embedding_bits if weight_bytes is None else mean_bits
    return Subject(
        name=shape.name,
        parameters=shape.parameters,
        active_parameters=shape.active_parameters,
        weight_bytes=weights,
        read_bytes=weights - experts - lookup * table_bits / 8,
        expert_bytes=experts,
        num_experts=shape.num_experts,
        experts_per_token=shape.experts_per_token,
        kv_bytes=cache(formulas.whole_blocks(prompt_tokens + output_tokens, rates.CACHE_BLOCK)),
        kv_read_bytes=cache(middle),
        decode_flops=rates.token_flops(shape.active_parameters, lookup, full, windowed, shape.window, middle),
        prefill_flops=rates.prompt_flops(
            shape.active_parameters, lookup, head, full, windowed, shape.window, prompt_tokens
        ),
        layers=shape.layers,
        hidden=shape.hidden,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
    )


def subject_of_bytes(
    shape: Shape, *, weight_bytes: float, read_bytes: float, prompt_tokens: int, output_tokens: int, cache_bits: float
) -> Subject:
    """A dense model on one device whose file has been counted: all its bytes, and those that a token reads.

    Raises:
        UsageError: a context beyond the model.
    """
    plain = Quantisation(name="the file's", kind="weights", bits=16, method="", source="")
    found = subject(shape, plain, prompt_tokens=prompt_tokens, output_tokens=output_tokens, cache_bits=cache_bits)
    return replace(found, weight_bytes=weight_bytes, read_bytes=read_bytes, expert_bytes=0.0)


def free_bytes(subject: Subject, hardware: Hardware) -> float:
    """Bytes for caches over all devices; negative where the weights alone do not fit."""
    return hardware.gpus * (hardware.memory * rates.USABLE - rates.DEVICE_OVERHEAD) - subject.weight_bytes


def peak_flops(gpu: Gpu, quantisation: str) -> float:
    """Operations a second in the format that products are computed in: 8-bit floats as such where the device has them,
    everything else, 4-bit weights too, as bfloat16 (as float32 where the device has nothing shorter)."""
    kind = "fp8" if quantisation == "fp8" and "fp8" in gpu.tflops else "fp32" if quantisation == "fp32" else "bf16"
    return gpu.tflops.get(kind, gpu.tflops.get("fp32", 0.0)) * 1e12  # type: ignore[call-overload]


def hardware(gpu: Gpu, gpus: int, quantisation: str) -> Hardware:
    """A replica of devices from the catalog."""
    return Hardware(
        name=gpu.name,
        gpus=gpus,
        memory=gpu.memory,
        bandwidth=gpu.bandwidth_gb_s * 1e9,
        peak_flops=peak_flops(gpu, quantisation),
        link=gpu.link_gb_s * 1e9,
        link_latency_s=LINK_LATENCY_S[gpu.link],
    )


def work(
    shape: Shape, tokens: float, *, seq_len: int, trained: float | None = None, checkpointing: bool = False
) -> Work:
    """What is trained: ``trained`` parameters, or all."""
    check_context(shape, seq_len)
    full, windowed = widths(shape)
    lookup = looked_up(shape)
    attention = rates.token_flops(0, 0, full, windowed, shape.window, seq_len / 2)
    return Work(
        name=shape.name,
        parameters=shape.parameters,
        active=shape.active_parameters - lookup,
        attention_flops=attention,
        tokens=tokens,
        trained=shape.parameters if trained is None else trained,
        checkpointing=checkpointing,
    )


def lora_parameters(shape: Shape, rank: int, targets: Sequence[str] = ()) -> float:
    """Weights of LoRA of ``rank`` beside the linear layers named, or all of them, of every layer."""
    chosen = [(i, o) for name, i, o in shape.adapted if not targets or name in targets]
    each = formulas.lora_parameters(rank, sum(i for i, _ in chosen), sum(o for _, o in chosen))
    return shape.layers * each
