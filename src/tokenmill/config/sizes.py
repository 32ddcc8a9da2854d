"""The one dial of pretraining: from a size to width, depth, vocabulary, batch, horizon and learning rate.

Each function gives a number and the sentence that explains it; a person may set any of them instead. No torch: the
planner uses the same laws.

Sources: Kaplan et al. 2020 (arXiv 2001.08361: width to depth matters little over a wide range, 6 operations a parameter
and token), Hoffmann et al. 2022 (Chinchilla, arXiv 2203.15556: 20 tokens a parameter), Muennighoff et al. 2023 (arXiv
2305.16264: four passes are nearly as good as new data), DeepSeek LLM 2024 (arXiv 2401.02954: batch and learning rate by
compute), Tao et al. 2024 (arXiv 2407.13623: larger models want larger vocabularies).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Generic, TypeVar

from tokenmill.core.errors import UsageError, did_you_mean

SIZES = {
    "tiny": 1_300_000,
    "mini": 10_000_000,
    "small": 30_000_000,
    "medium": 110_000_000,
    "base": 400_000_000,
    "large": 1_300_000_000,
}
"""Parameters, embedding included, that a name stands for."""

TOKENS_PER_PARAMETER = 20
TINY_TOKENS_PER_PARAMETER = 2
MOST_PASSES = 4
HEAD_DIM = 64

T = TypeVar("T")


@dataclass(frozen=True)
class Derived(Generic[T]):
    """A value and where it comes from."""

    value: T
    reason: str


@dataclass(frozen=True)
class Dimensions:
    """Of a decoder."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mlp_size: int


def target_parameters(size: str | int) -> int:
    """Parameters that a size means: a name, a number, or a number with K, M or B. UsageError for anything else."""
    if isinstance(size, int):
        return size
    if size in SIZES:
        return SIZES[size]
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMBkmb]?)", size.strip())
    if match is None:
        raise UsageError(
            f"size={size!r} is no size{did_you_mean(size, SIZES)}; use {', '.join(SIZES)}, or parameters such as 10M"
        )
    return int(float(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}[match[2].upper()])


def vocabulary(parameters: int, text_bytes: int | None) -> Derived[int]:
    """Tokens of a new tokenizer: by the model's size, less where the text is too short to show them all."""
    steps = ((3_000_000, 4096), (20_000_000, 8192), (80_000_000, 16384))
    wanted = next((size for most, size in steps if parameters <= most), 32768)
    reason = f"{wanted} for {parameters:,} parameters: larger models want larger vocabularies (arXiv 2407.13623)"
    if text_bytes is not None and text_bytes < 250 * wanted:
        fits = max(512, text_bytes // 250 // 64 * 64)
        if fits < wanted:
            return Derived(fits, f"{text_bytes:,} bytes of text show about {fits} tokens often enough to learn them")
    return Derived(wanted, reason)


def dimensions(parameters: int, vocab_size: int) -> Derived[Dimensions]:
    """The decoder of about that size whose width is nearest to 64 times its depth, heads of 64."""
    best: tuple[float, Dimensions] | None = None
    for layers in range(2, 129):
        # a billion parameters share keys and values four heads at a time
        for width in range(unit := HEAD_DIM * (4 if parameters >= 10**9 else 1), 16 * 1024, unit):
            if not 32 <= width / layers <= 128:
                continue
            shape = _shape(width, layers, parameters)
            off = abs(decoder_parameters(shape, vocab_size) / parameters - 1)
            # a tenth more or less of the size counts as much as an aspect twice the usual
            score = 10 * off + abs(width / layers / 64 - 1)
            if best is None or score < best[0]:
                best = (score, shape)
    assert best is not None, "the search has candidates for any size"
    shape = best[1]
    reason = (
        f"width {shape.hidden_size} over depth {shape.num_layers} = {shape.hidden_size / shape.num_layers:.0f}, near "
        f"64 (arXiv 2001.08361: the ratio matters little), gives {decoder_parameters(shape, vocab_size):,} parameters"
    )
    return Derived(shape, reason)


def _shape(width: int, layers: int, parameters: int) -> Dimensions:
    heads = width // HEAD_DIM
    # keys and values are shared only where their cache weighs more than what sharing costs
    kv_heads = heads // 4 if parameters >= 10**9 and heads % 4 == 0 else heads
    mlp = round(width * 8 / 3 / 64) * 64  # gated: three matrices of 8/3 do the work of two of 4
    return Dimensions(width, layers, heads, kv_heads, mlp)


def decoder_parameters(shape: Dimensions, vocab_size: int) -> int:
    """Of a llama of these dimensions with tied embeddings (as ``nn/cost.py`` counts them)."""
    width, kv = shape.hidden_size, shape.num_kv_heads * HEAD_DIM
    layer = 2 * width * width + 2 * width * kv + 3 * width * shape.mlp_size + 2 * width
    return vocab_size * width + shape.num_layers * layer + width


def row_length(parameters: int) -> Derived[int]:
    """Tokens of a row of a new model."""
    steps = ((5_000_000, 256), (80_000_000, 512), (300_000_000, 1024))
    value = next((length for most, length in steps if parameters <= most), 2048)
    return Derived(value, f"{value} for {parameters:,} parameters: small models make little of a longer context")


def horizon(size: str | int, parameters: int, data_tokens: int) -> Derived[int]:
    """Tokens to be seen: by the size, but no more than four passes over the data."""
    ratio = TINY_TOKENS_PER_PARAMETER if size == "tiny" else TOKENS_PER_PARAMETER
    wanted, most = ratio * parameters, MOST_PASSES * data_tokens
    if most < wanted:
        return Derived(
            most,
            f"{MOST_PASSES} passes over {data_tokens:,} tokens, beyond which repeating stops to help (arXiv "
            f"2305.16264); {ratio} tokens a parameter would be {wanted:,}",
        )
    if size == "tiny":
        return Derived(
            wanted, f"{ratio} tokens a parameter: tiny is for minutes on two cores (Chinchilla: {TOKENS_PER_PARAMETER})"
        )
    return Derived(wanted, f"{ratio} tokens a parameter (Chinchilla, arXiv 2203.15556)")


def batch_tokens(parameters: int, tokens: int, seq_len: int) -> Derived[int]:
    """Tokens of an optimiser step: 0.292 C^0.3271 (DeepSeek), as a power of two of rows."""
    wanted = 0.2920 * (6.0 * parameters * tokens) ** 0.3271
    rows = 1
    while rows * 2 * seq_len <= wanted * 1.42:  # the nearest power of two by ratio
        rows *= 2
    return Derived(
        rows * seq_len,
        f"0.292 C^0.3271 = {wanted:,.0f} for C = 6 x {parameters:,} x {tokens:,} operations (arXiv 2401.02954), "
        f"as {rows} rows of {seq_len}",
    )


def learning_rate(parameters: int, tokens: int) -> Derived[float]:
    """Highest learning rate: 0.3118 C^-0.125 (DeepSeek)."""
    rate = 0.3118 * (6.0 * parameters * tokens) ** -0.125
    value = float(f"{rate:.2g}")
    return Derived(value, f"0.3118 C^-0.125 for C = 6 x {parameters:,} x {tokens:,} operations (arXiv 2401.02954)")
