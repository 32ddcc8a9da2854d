"""What tokenmill's own process holds on a processor: resident memory, peak, term by term.

Calibrated by ``benchmarks/plan_memory.py``, which measures the default model and three shapes with random weights; each
constant below is one of its measurements (Linux x86-64, Python 3.11, torch 2.13, November 2026) and has a reason:

- Mapped files stay resident as long as any tensor is a view of them: norms of a GGUF file, or all of a file whose
  format is computed with.
- glibc keeps what was freed where something small and long-lived was put into it. A LoRA layer keeps a narrow result
  for the backward pass, an expert's output is replaced by a sum: the room of their neighbours is lost until the step
  ends, and counts (``HOLES``).
- A tied embedding's gradient exists three times: from the loss, from the lookup, and summed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenmill.plan import formulas

if TYPE_CHECKING:
    from tokenmill.plan.memory import Method, Setup
    from tokenmill.plan.shape import Shape

MIB = 1 << 20
PROCESS = 238.5 * MIB
"""Python, torch and tokenmill imported, nothing loaded."""
TRAINER = 234.4 * MIB
"""The same for the trainer."""
LIBRARIES = 11 * MIB
"""Pages of libraries that loading and the first passes touch; ``TRAINING_LIBRARIES`` with a backward pass."""
TRAINING_LIBRARIES = 25 * MIB
HEAD_BYTES = 241.0
"""Of a vocabulary's entry in a GGUF file's metadata as Python holds it: token, score, type, its share of merges."""
TOKENIZER_BYTES = 533.0
"""Of a vocabulary's entry in a tokenizer that is ready."""
BLOCK = 32
"""Positions of a block of the native cache (``engine/native_pass.py``)."""
ROWS = 512
"""Tokens of a native pass, at most (``engine/native_pass.py``)."""
SCRATCH = 6 * MIB
"""Of the kernels: quantised inputs and each thread's panels, for layers of a few thousand."""
TRIM_TOKENS = 1024
"""From so many tokens of a micro-batch on, the trainer gives free memory back before the loss."""
SETTLED = 60 * MIB
"""What the heap holds more from the second step on, between things that live long: 26 to 86 MiB measured."""


def _cache_bits(shape: Shape, asked: float) -> float:
    """What is asked for; where nothing is, float32 beside float32 weights, else bfloat16."""
    return 32 if asked == 16 and shape.stored is not None and set(shape.stored) == {"F32"} else asked


def _mapped(shape: Shape, kept: str) -> float:
    """Bytes of the file that stay resident beside what was made of them: tensors of format ``kept`` are views of it."""
    if shape.stored is None or kept not in shape.stored:
        return 0.0
    if set(shape.stored) != {kept}:
        return float(shape.file_bytes or 0)
    # all are views, unless matrices had to be turned round
    turned = shape.layers * sum(i * o for _, i, o in shape.adapted) if shape.transposed else 0
    return turned * (shape.stored_bytes or 0) / shape.parameters


def inference(shape: Shape, setup: Setup) -> dict[str, float]:
    """The engine with its native kernels, after an answer that filled ``context``: ``LLM(...)`` on a CPU.

    From the second start on: the first packs the weights and holds the file they come from as well.
    """
    stored = shape.stored_bytes
    formats = set(shape.stored or {})
    if setup.quantisation is not None or stored is None:
        from tokenmill.plan.memory import weight_bytes

        weights, mapped = weight_bytes(shape, setup.quantisation), 0.0
    else:
        weights = float(stored)
        # stacked experts are put together from the file's parts, the rest are views of it, and all runs on torch
        mapped = shape.parameters - shape.expert_parameters if shape.moe_layers else 0.0
        mapped = float(shape.file_bytes or 0) if formats == {"F32"} or mapped else 0.0
    length = formulas.whole_blocks(setup.context, BLOCK)
    # every layer has all positions: windows save work, not memory, in a cache of one block table
    values = (shape.full_values + shape.windowed_values) * length + shape.state_values
    rows = min(ROWS, setup.context * setup.batch)
    gguf = shape.origin == "GGUF header"
    terms = {
        "process": PROCESS + LIBRARIES,
        "vocabulary": shape.vocab * (TOKENIZER_BYTES + (HEAD_BYTES if gguf else 0.0)),
        "mapped file": mapped,
        "weights": weights,
        "cache": formulas.cache_bytes(values, setup.batch, _cache_bits(shape, setup.cache_bits)),
        "pass": formulas.pass_bytes(rows, shape.hidden, shape.query, shape.key, shape.mlp, shape.vocab, 32) + SCRATCH,
    }
    return {name: size for name, size in terms.items() if size}


def training(shape: Shape, setup: Setup, method: Method) -> dict[str, float]:
    """The trainer at the peak of a step."""
    from tokenmill.plan import memory

    number = memory.trained(shape, setup, method)
    width, tokens = setup.dtype_bits / 8, setup.batch * setup.context
    computed = "F32" if setup.dtype_bits == 32 else "BF16"
    own = width if method == "full" else 4.0
    master = 2.0 if method == "full" and setup.dtype_bits == 16 else 0.0
    gguf = shape.origin == "GGUF header"
    terms = {
        "process": TRAINER + TRAINING_LIBRARIES,
        "vocabulary": shape.vocab * HEAD_BYTES if gguf else 0.0,
        "mapped file": _mapped(shape, computed),
        "weights": memory.base_bytes(shape, setup, method) + (0.0 if method == "full" else number * own),
        "gradients": number * own,
        "optimizer": formulas.state_bytes(number, memory.moment_bytes(setup, method), master),
        "activations": memory.kept_activations(shape, setup, method),
        "scores": memory.scores(shape, setup),
        "holes": _holes(shape, setup, method, tokens),
    }
    if tokens >= TRIM_TOKENS:  # what is free is given back between the layers and the scores: one or the other
        terms["holes"] = max(0.0, terms["holes"] - terms["scores"])
    terms["holes"] += SETTLED
    if method == "full":
        terms["table gradients"] = _table_gradients(shape, width)
    return {name: size for name, size in terms.items() if size}


def _table_gradients(shape: Shape, width: float) -> float:
    """Gradients of the embeddings and the output layer beside their sums: the loss's own in float32, and the lookup's
    where both are one matrix."""
    one = shape.vocab * shape.hidden
    tied = shape.table < 1.5 * one
    return one * (4 + width) if tied or width < 4 else one * 4.0


def _holes(shape: Shape, setup: Setup, method: Method, tokens: float) -> float:
    width = setup.dtype_bits / 8
    lost = float(shape.moe_layers * shape.num_experts * tokens * shape.hidden) * width
    if method != "full":
        outputs = sum(o for name, _, o in shape.adapted if not setup.targets or name in setup.targets)
        layers = 1 if setup.checkpointing else shape.layers
        lost += tokens * layers * outputs * width
    return lost
