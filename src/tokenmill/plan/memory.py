"""``plan memory``: what a model needs on a device, term by term, and what follows from it: the longest context, the
largest batch, the smallest GPU, the best number format that fits.

Two places: a GPU (inference by a paged engine such as ours or vLLM; training by ours or by an ordinary program), and
tokenmill's own process on a processor (``process.py``), calibrated by ``benchmarks/plan_memory.py``. All arithmetic is
in ``plan/formulas.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from tokenmill.core.errors import UsageError, did_you_mean
from tokenmill.plan import formulas, process
from tokenmill.plan.catalog import GIB, Gpu, Quantisation
from tokenmill.plan.rates import CACHE_BLOCK, DEVICE_OVERHEAD, USABLE
from tokenmill.plan.shape import Shape
from tokenmill.plan.subject import check_context, check_split

Method = Literal["inference", "full", "lora", "qlora"]
METHODS: tuple[Method, ...] = get_args(Method)
OPTIMIZERS = {
    "adamw": 8.0,
    "adamw_8bit": 2.03,
    "paged_adamw": 8.0,
    "paged_adamw_8bit": 2.03,
    "muon": 4.0,
    "adafactor": 0.1,
    "sgd": 0.0,
}
"""Bytes of state a trained float32 weight: two float32 moments; two bytes and two float32 scales a block of 256; one
moment; factors of a matrix; none. Names are those of recipes (``train/optim``), and plain descent."""
CONTEXT_BYTES = 0.5 * GIB
"""Of a process on a GPU before its first tensor: the driver's context and the libraries' kernels (the lesson: 0.5 to 1
GB)."""
SCORED_BYTES = 1 << 28
"""Scores that tokenmill's loss has at once (``ops/cross_entropy.py``)."""
NF4_BITS = 4.127
"""Of a weight with double quantisation, QLoRA's default."""
MOST_BATCH = 1 << 20


@dataclass(frozen=True)
class Setup:
    """What is to be done with a model, and how."""

    quantisation: Quantisation | None = None
    """Of the weights; None: as the file has them, else in 16 bits."""
    cache_bits: float = 16.0
    context: int = 4096
    batch: int = 1
    """Sequences at once; in training, of a micro-batch."""
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    sharded: bool = False
    """Weights, gradients and optimiser are divided among the data-parallel devices (FSDP, ZeRO 3)."""
    optimizer: str = "adamw"
    checkpointing: bool = False
    dtype_bits: int = 16
    """Of weights that are computed with in training, and of activations."""
    rank: int = 16
    targets: tuple[str, ...] = ()
    """Linear layers that LoRA stands beside (q, k, v, o, gate, up, down); empty: all."""
    program: Literal["tokenmill", "ordinary"] = "tokenmill"
    """Whose training: an ordinary program keeps more of the forward pass and whole scores."""
    processor: bool = False
    """In this program's process, on a processor, instead of a GPU."""


@dataclass(frozen=True)
class Need:
    """Bytes on the fullest device, by what they are for."""

    method: Method
    terms: Mapping[str, float]
    trained: float = 0.0
    """Weights that are trained."""

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(self.terms.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "method": self.method,
            "bytes": round(self.total),
            "gib": self.total / GIB,
            "terms": {name: round(size) for name, size in self.terms.items()},
            "trained_parameters": round(self.trained),
        }


def check(shape: Shape, setup: Setup) -> None:
    """Raises UsageError for what is impossible, with the nearest that is possible."""
    check_context(shape, setup.context)
    check_split(shape, setup.tensor)
    if setup.pipeline > shape.layers:
        raise UsageError(
            f"{setup.pipeline} pipeline stages are more than the {shape.layers} layers of {shape.name}; "
            f"{shape.layers} is the most"
        )
    if setup.optimizer not in OPTIMIZERS:
        near = did_you_mean(setup.optimizer, OPTIMIZERS)
        raise UsageError(f"no optimiser {setup.optimizer!r}{near}; known: {', '.join(OPTIMIZERS)}")
    names = [name for name, _, _ in shape.adapted]
    for target in setup.targets:
        if target not in names:
            raise UsageError(
                f"{shape.name} has no linear layer {target!r} to adapt{did_you_mean(target, names)}; "
                f"it has: {', '.join(names)}"
            )
    if setup.processor and setup.tensor * setup.pipeline * setup.data > 1:
        raise UsageError("on a processor one process does everything: parallel splits are for GPUs; leave them at 1")
    if setup.processor and setup.program != "tokenmill":
        raise UsageError("on a processor only tokenmill's own process is known; leave the program at tokenmill")


def need(shape: Shape, setup: Setup, method: Method) -> Need:
    """What one method needs. Raises what :func:`check` raises."""
    check(shape, setup)
    if setup.processor:
        terms = process.inference(shape, setup) if method == "inference" else process.training(shape, setup, method)
        return Need(method, terms, trained(shape, setup, method))
    if method == "inference":
        return Need(method, _inference(shape, setup))
    return Need(method, _training(shape, setup, method), trained(shape, setup, method))


def _inference(shape: Shape, setup: Setup) -> dict[str, float]:
    weights = weight_bytes(shape, setup.quantisation) * formulas.weight_share(
        setup.tensor, shape.layers, setup.pipeline
    )
    share = formulas.cache_share(shape.kv_heads, setup.tensor, float(shape.latent))
    stages = formulas.weight_share(1, shape.layers, setup.pipeline)
    return {
        "weights": weights,
        "cache": cache_bytes(shape, setup, CACHE_BLOCK) * share * stages,
        "runtime": DEVICE_OVERHEAD,
    }


def weight_bytes(shape: Shape, quantisation: Quantisation | None) -> float:
    """Bytes of all weights in a number format, or as the file has them."""
    if quantisation is None:
        stored = shape.stored_bytes
        return float(stored) if stored is not None else shape.parameters * 2
    return formulas.weight_bytes(shape.parameters, shape.table, quantisation.bits, quantisation.embedding_bits)


def cache_bytes(shape: Shape, setup: Setup, block: int) -> float:
    """Bytes of the cache of the whole batch, in whole blocks of positions."""
    length = formulas.whole_blocks(setup.context, block)
    values = formulas.sequence_values(
        shape.full_values, shape.windowed_values, shape.window, shape.state_values, length
    )
    return formulas.cache_bytes(values, setup.batch, setup.cache_bits)


def trained(shape: Shape, setup: Setup, method: Method) -> float:
    """How many weights a method trains."""
    if method == "inference":
        return 0.0
    if method == "full":
        return shape.parameters
    chosen = [(i, o) for name, i, o in shape.adapted if not setup.targets or name in setup.targets]
    return shape.layers * formulas.lora_parameters(setup.rank, sum(i for i, _ in chosen), sum(o for _, o in chosen))


def base_bytes(shape: Shape, setup: Setup, method: Method) -> float:
    """Bytes of the weights in training, adapters apart: whole ones in ``dtype_bits``; under QLoRA the layers' in NF4
    (or the format asked for, if adapters can be trained over it), embeddings and output layer in ``dtype_bits``."""
    if method != "qlora":
        return shape.parameters * setup.dtype_bits / 8
    given = setup.quantisation
    bits = given.bits if given is not None and given.trains and given.bits < 16 else NF4_BITS
    return formulas.weight_bytes(shape.parameters, shape.table, bits, setup.dtype_bits)


def moment_bytes(setup: Setup, method: Method) -> float:
    """Bytes of optimiser state a trained weight. AdamW's moments of weights in 16 bits have 16 bits too, in tokenmill
    (``train/optim/adamw.py``) and wherever torch's own optimiser makes them; adapters are float32."""
    halved = setup.optimizer in ("adamw", "paged_adamw") and method == "full" and setup.dtype_bits == 16
    return OPTIMIZERS[setup.optimizer] / (2 if halved else 1)


def kept_activations(shape: Shape, setup: Setup, method: Method) -> float:
    """Bytes that the backward pass is waited for with, without the scores."""
    tokens, bits = setup.batch * setup.context, setup.dtype_bits
    widths = (shape.hidden, shape.query, shape.key, shape.mlp)
    if setup.program == "tokenmill":
        if method == "full" and shape.gated and not shape.moe_layers:
            widths = (*widths[:3], 0)  # nn/mlp.py has gates computed again

        def kept(layers: float) -> float:
            return formulas.lean_kept_bytes(tokens, layers, *widths, shape.beside, bits)
    else:
        # LoRA's inputs are kept beside in its own 32 bits, once for each of its layers
        adapted = sum(i for name, i, _ in shape.adapted if not setup.targets or name in setup.targets)
        beside = float(adapted) if method != "full" else 0.0

        def kept(layers: float) -> float:
            inputs = 1.0 if method == "full" else 0.0
            return formulas.kept_bytes(tokens, layers, *widths, 4.0, inputs, beside, 4.0, bits)

    if setup.checkpointing:
        return formulas.checkpointed_bytes(tokens, shape.layers, shape.hidden, kept(1), bits)
    return kept(shape.layers)


def scores(shape: Shape, setup: Setup) -> float:
    """Bytes of the scores over the vocabulary at their peak: a chunk of them and no gradient beside in tokenmill; in an
    ordinary program all of them in 16 bits, in float32, their softmax and both gradients."""
    tokens = setup.batch * setup.context
    if setup.program == "tokenmill":
        rows = max(1, SCORED_BYTES * 8 // (setup.dtype_bits * shape.vocab))
        return formulas.scores_bytes(min(tokens, rows), shape.vocab, 1, setup.dtype_bits)
    return formulas.scores_bytes(tokens, shape.vocab, 2, setup.dtype_bits) + formulas.scores_bytes(
        tokens, shape.vocab, 3, 32
    )


def _training(shape: Shape, setup: Setup, method: Method) -> dict[str, float]:
    number, split = trained(shape, setup, method), formulas.weight_share(setup.tensor, shape.layers, setup.pipeline)
    sharded = float(setup.sharded)

    def shared(whole: float) -> float:
        return formulas.fully_sharded(whole * split, setup.data, sharded)

    own_bytes = setup.dtype_bits / 8 if method == "full" else 4.0
    # tokenmill keeps what rounding cut off beside a bfloat16 weight; adapters are float32 anyway
    master = 2.0 if method == "full" and setup.dtype_bits == 16 and setup.program == "tokenmill" else 0.0
    adapter = 0.0 if method == "full" else number * own_bytes
    terms = {
        "weights": shared(base_bytes(shape, setup, method) + adapter),
        "gradients": shared(number * own_bytes),
        "optimizer": shared(formulas.state_bytes(number, moment_bytes(setup, method), master)),
        "activations": kept_activations(shape, setup, method) * split,
        "scores": scores(shape, setup) / setup.tensor,
        "runtime": CONTEXT_BYTES,
    }
    if setup.program == "ordinary" and method == "full":
        # gradients come while activations go: the peak is where there are most of both, not all of both
        both = terms.pop("gradients")
        terms["activations and gradients"] = max(terms.pop("activations") + terms.pop("scores"), both)
    return terms


# --- what follows


def fits(total: float, gpu: Gpu, usable: float = USABLE) -> bool:
    """Whether so many bytes are within the share of a device's memory that is planned with."""
    return total <= gpu.memory * usable


def most(possible: Callable[[int], bool], limit: int) -> int:
    """The largest number up to ``limit`` that is possible, where all below a possible one are; 0 if none is."""
    if not possible(1):
        return 0
    low, high = 1, 2
    while high <= limit and possible(high):
        low, high = high, high * 2
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if possible(middle) else (low, middle)
    return low


def largest_context(shape: Shape, setup: Setup, method: Method, room: float) -> int:
    """Tokens, at most the model's own; 0 where not even one fits."""
    return most(lambda n: need(shape, replace(setup, context=n), method).total <= room, shape.context)


def largest_batch(shape: Shape, setup: Setup, method: Method, room: float) -> int:
    """Sequences of the context asked for; 0 where not even one fits."""
    return most(lambda n: need(shape, replace(setup, batch=n), method).total <= room, MOST_BATCH)


def smallest_gpus(
    shape: Shape, setup: Setup, method: Method, gpus: Iterable[Gpu], usable: float = USABLE
) -> list[tuple[Gpu, int]]:
    """(GPU, how many with tensor parallelism) that hold it, the least memory in all first; each GPU once."""
    found: list[tuple[Gpu, int]] = []
    for gpu in gpus:
        if gpu.unified and method != "inference":  # no trainer of ours or of the peers' runs there
            continue
        for count in (1, 2, 4, 8, 16, 32, 64):
            if count > gpu.devices_per_node or shape.heads % count:
                break
            split = replace(setup, tensor=count, pipeline=1)
            if fits(need(shape, split, method).total, gpu, usable):
                found.append((gpu, count))
                break
    return sorted(found, key=lambda pair: (pair[0].memory_gib * pair[1], pair[1]))


def fitting_quantisations(
    shape: Shape, setup: Setup, method: Method, known: Iterable[Quantisation], room: float
) -> list[tuple[Quantisation, float]]:
    """(number format, bytes) of those that fit, the most bits first; for QLoRA, of those that can be trained over."""
    able = [q for q in known if q.kind == "weights" and (method == "inference" or (q.trains and q.bits < 16))]
    needs = [(q, need(shape, replace(setup, quantisation=q), method).total) for q in able]
    return sorted((pair for pair in needs if pair[1] <= room), key=lambda pair: -pair[0].bits)
