"""How much memory: pure arithmetic from dimensions to bytes.

Only functions of numbers that return a number, in the part of Python that ``plan/page/transpile.py`` turns into
JavaScript. Units: bytes, bits a value, tokens. Widths are numbers of a token: ``hidden`` of the residual stream,
``query`` and ``key`` of all heads together, ``mlp`` of the feed-forward layer.

Sources: Ainslie et al. 2023 (grouped queries), DeepSeek-AI 2024 (multi-latent attention, arXiv 2405.04434), Beltagy et
al. 2020 (windows), Korthikanti et al. 2022 (activations, arXiv 2205.05198), Rajbhandari et al. 2020 (ZeRO), Hu et al.
2021 (LoRA), Dettmers et al. 2023 (QLoRA).
"""

from __future__ import annotations

from math import ceil


def weight_bytes(parameters: float, table: float, bits: float, table_bits: float) -> float:
    """Bytes of weights of which the ``table`` (embeddings, an output layer of its own) has another format."""
    return ((parameters - table) * bits + table * table_bits) / 8


def grouped_values(layers: float, kv_heads: float, head_dim: float) -> float:
    """Numbers that a token adds to the cache: a key and a value for each key/value head, not for each query head."""
    return 2 * layers * kv_heads * head_dim


def latent_values(layers: float, rank: float, rope_dim: float) -> float:
    """Numbers that a token adds with multi-latent attention: one compressed vector and the part with the position."""
    return layers * (rank + rope_dim)


def sequence_values(full: float, windowed: float, window: float, state: float, length: float) -> float:
    """Numbers in the cache of one sequence: all positions in ``full``, the last ``window`` in ``windowed``, and a
    state of fixed size (linear attention)."""
    return full * length + windowed * min(length, window) + state


def cache_bytes(values: float, sequences: float, bits: float) -> float:
    """Bytes of ``sequences`` that have ``values`` each."""
    return values * sequences * bits / 8


def whole_blocks(length: float, block: float) -> float:
    """Positions that a paged cache holds for ``length`` tokens."""
    return ceil(length / block) * block


def cache_share(kv_heads: float, tensor_parallel: float, latent: float) -> float:
    """Share of the cache on one device: heads are split as far as there are any; a latent vector serves all heads and
    is on every device."""
    if latent > 0:
        return 1.0
    return 1 / min(kv_heads, tensor_parallel)


def weight_share(tensor_parallel: float, layers: float, pipeline_parallel: float) -> float:
    """Share of the weights on the fullest device; pipeline stages have whole layers."""
    return ceil(layers / pipeline_parallel) / layers / tensor_parallel


def pass_bytes(rows: float, hidden: float, query: float, key: float, mlp: float, vocab: float, bits: float) -> float:
    """Bytes of the results of a pass that are alive together: the residual stream and its norm, queries, keys and
    values before and after they are turned, what attention returns, the gate, the other half and their product."""
    return rows * (2 * hidden + 3 * query + 3 * key + 3 * mlp) * bits / 8 + vocab * 4


def kept_bytes(
    tokens: float,
    layers: float,
    hidden: float,
    query: float,
    key: float,
    mlp: float,
    norm_bytes: float,
    inputs: float,
    adapted: float,
    adapted_bytes: float,
    bits: float,
) -> float:
    """Bytes that autograd keeps of the layers of a forward pass in an ordinary program: both norms' inputs in
    ``norm_bytes`` each number, turned queries and keys, values and what attention returns, the gate, its activation
    and the other half. Where the weights are trained (``inputs`` 1), or the program keeps them all the same, also
    each linear layer's input that is none of these. ``adapted``: numbers of inputs of LoRA that are kept beside, of
    ``adapted_bytes`` each.
    """
    wide = 2 * hidden * norm_bytes
    attention = (2 * query + 2 * key) * bits / 8
    feed_forward = 3 * mlp * bits / 8
    of_linears = inputs * (2 * hidden + mlp) * bits / 8
    return tokens * layers * (wide + attention + feed_forward + of_linears + adapted * adapted_bytes)


def lean_kept_bytes(
    tokens: float, layers: float, hidden: float, query: float, key: float, mlp: float, beside: float, bits: float
) -> float:
    """What tokenmill's trainer keeps: the residual stream twice a layer, queries, keys, values, what attention
    returns, ``mlp`` of the gate and the other half (0 where they are computed again), and ``beside`` what few families
    have; norms and the gated product are always computed again (``ops/recompute.py``)."""
    return tokens * layers * (2 * hidden + 2 * query + 2 * key + 2 * mlp + beside) * bits / 8


def checkpointed_bytes(tokens: float, layers: float, hidden: float, one_layer: float, bits: float) -> float:
    """With checkpointing: each layer's input, and all of one layer while its backward pass runs."""
    return tokens * layers * hidden * bits / 8 + one_layer


def scores_bytes(rows: float, vocab: float, copies: float, bits: float) -> float:
    """Bytes of the scores over the vocabulary that exist at once for ``rows`` tokens."""
    return rows * vocab * copies * bits / 8


def lora_parameters(rank: float, inputs: float, outputs: float) -> float:
    """Weights of a pair of matrices beside a linear layer; sums of widths give sums of weights."""
    return rank * (inputs + outputs)


def state_bytes(trained: float, optimizer_bytes: float, master_bytes: float) -> float:
    """Bytes of the optimiser's moments and of the exact copy of rounded weights."""
    return trained * (optimizer_bytes + master_bytes)


def fully_sharded(whole: float, data_parallel: float, sharded: float) -> float:
    """Bytes on one device of what is either on every data-parallel one, or in equal shares (ZeRO, FSDP)."""
    if sharded > 0:
        return whole / data_parallel
    return whole


def largest(room: float, fixed: float, each: float) -> float:
    """How many of ``each`` bytes fit beside ``fixed`` ones; 0 where nothing fits."""
    if each <= 0:
        return 0.0
    return max(0.0, (room - fixed) // each)
