"""Operations whose result for one token does not depend, to the last bit, on the tokens computed with it.

Fast kernels choose their way by the shape of the call: how many rows a matrix product has, how long a chunk of a prompt
is, where an element lies in a tensor. Each way rounds differently, so the same request gives other logits in another
batch. Inside :func:`batch_invariant` every operation has one way (Horace He et al. 2025 tell why that is enough):

- linear: tiles of ``ROWS`` rows, the last one padded. A row's place in the tile must not matter either; that is tried
  once for each shape of weight, and where it does, rows are computed one by one;
- attention: tiles of ``QUERIES`` positions that begin at multiples of ``QUERIES`` of the sequence, against all keys up
  to the tile's end, what is not there yet padded and masked: the shape depends on the position alone;
- functions of single elements (SiLU, cosine, ...): rows padded to whole vector registers, few enough for one thread,
  since a vector and the scalar that is left over at the end of a tensor differ in the last bit.

What it costs: decoding one sequence computes 16 rows where it needs 1, and prompts go in small tiles. Quantised layers
have kernels of their own, which are not bound by any of this: the engine refuses them.

Axes as in the operations themselves: T tokens · I in · O out · H query heads · K key/value heads · D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenmill.ops.activation import gated_activation, plain_activation, soft_cap
from tokenmill.ops.attention import attention
from tokenmill.ops.linear import linear
from tokenmill.ops.registry import use_backend
from tokenmill.ops.rope import cos_sin

NAME = "batch_invariant"
ROWS = 16
QUERIES = 8
REGISTERS = 64  # elements: a multiple of what any vector loop takes at a time
ONE_THREAD = 32767  # elements: torch divides what is larger among threads, at borders of its own
_active: ContextVar[bool] = ContextVar("batch-invariant operations", default=False)


@contextmanager
def batch_invariant() -> Iterator[None]:
    """Compute everything inside batch-invariantly."""
    with ExitStack() as stack:
        token = _active.set(True)
        stack.callback(_active.reset, token)
        stack.enter_context(use_backend(**{op.name: NAME for op in (linear, attention, *_ELEMENTWISE)}))
        yield


def is_batch_invariant() -> bool:
    """Whether :func:`batch_invariant` is around us."""
    return _active.get()


def _refuses(*_: Any, **__: Any) -> str | None:
    return None if _active.get() else "nobody asked for it"


@linear.backend(NAME, _refuses)
def _linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    rows = x_TI.flatten(0, -2)
    size = ROWS if _rows_are_equal(weight_OI, torch.get_num_threads()) else 1
    padded = F.pad(rows, (0, 0, 0, -len(rows) % size)).contiguous()
    tiles = [F.linear(tile, weight_OI, bias_O) for tile in padded.split(size)]
    return torch.cat(tiles)[: len(rows)].unflatten(0, x_TI.shape[:-1])


_TRIED: dict[tuple[Any, ...], bool] = {}


def _rows_are_equal(weight_OI: Tensor, threads: int) -> bool:
    """Whether equal rows of a tile give equal results, whatever their place and their neighbours."""
    key = (weight_OI.shape, weight_OI.stride(), weight_OI.dtype, weight_OI.device, threads)
    if key not in _TRIED:
        generator = torch.Generator().manual_seed(0)
        row, others = torch.randn(2, ROWS, weight_OI.shape[1], generator=generator).to(weight_OI)
        row = row[:1].expand(ROWS, -1).contiguous()
        same = F.linear(row, weight_OI)
        mixed = others.clone()
        mixed[::5] = row[0]
        _TRIED[key] = bool((same == same[0]).all()) and bool((F.linear(mixed, weight_OI)[::5] == same[0]).all())
    return _TRIED[key]


@attention.backend(NAME, _refuses)
def _attention(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    *,
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    **how: Any,
) -> Tensor:
    outputs = []
    parts = zip(q_THD.split(list(q_lens)), k_SKD.split(list(kv_lens)), v_SKD.split(list(kv_lens)), strict=True)
    for q_QHD, k_CKD, v_CKD in parts:
        start, end = len(k_CKD) - len(q_QHD), len(k_CKD)
        for tile in range(start // QUERIES * QUERIES, end, QUERIES):
            first, last = max(tile, start), min(tile + QUERIES, end)
            padding = (0, 0, 0, 0, first - tile, tile + QUERIES - last)
            q_8HD = F.pad(q_QHD[first - start : last - start], padding)
            outputs.append(_tile(q_8HD, k_CKD, v_CKD, tile, **how)[first - tile : last - tile])
    return torch.cat(outputs)


def _tile(
    q_QHD: Tensor,
    k_CKD: Tensor,
    v_CKD: Tensor,
    position: int,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    alibi_H: Tensor | None = None,
) -> Tensor:
    """``QUERIES`` queries from ``position`` on against the keys they may see; [Q, H, D]."""
    heads, kv_heads, size = q_QHD.shape[1], k_CKD.shape[1], q_QHD.shape[2]
    first, end = max(0, position - window + 1) if window else 0, position + QUERIES
    k_KSD, v_KSD = (_padded(part[first:end], end - first) for part in (k_CKD, v_CKD))
    q_KMD = q_QHD.float().transpose(0, 1).reshape(kv_heads, heads // kv_heads * QUERIES, size)
    scores_HQS = (torch.bmm(q_KMD, k_KSD.transpose(1, 2)) * scale).view(heads, QUERIES, -1)
    if softcap is not None:
        scores_HQS = softcap * torch.tanh(scores_HQS / softcap)
    places = torch.arange(first, end, device=q_QHD.device)
    distance_QS = torch.arange(position, end, device=q_QHD.device)[:, None] - places
    hidden_QS = distance_QS < 0 if window is None else (distance_QS < 0) | (distance_QS >= window)
    if alibi_H is not None:
        scores_HQS = scores_HQS - alibi_H.float()[:, None, None] * distance_QS
    weights_HQS = torch.softmax(scores_HQS.masked_fill(hidden_QS, float("-inf")), dim=-1)
    out_KMD = torch.bmm(weights_HQS.view(kv_heads, -1, end - first), v_KSD)
    return out_KMD.view(heads, QUERIES, size).transpose(0, 1).to(q_QHD.dtype)


def _padded(part_SKD: Tensor, length: int) -> Tensor:
    """Fresh memory [K, length, D] in float32, zeros behind what is there: where the cache keeps it does not matter."""
    padded = part_SKD.new_zeros(part_SKD.shape[1], length, part_SKD.shape[2], dtype=torch.float32)
    padded[:, : len(part_SKD)] = part_SKD.transpose(0, 1)
    return padded


def _by_rows(function: Callable[..., Any], *inputs: Tensor | Any) -> Any:
    """An elementwise ``function`` of tensors of one shape, so that no element's place in them matters."""
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    width = tensors[0].shape[-1]
    padded = [F.pad(x.reshape(-1, width), (0, -width % REGISTERS)).contiguous() for x in tensors]
    rows = max(1, ONE_THREAD // padded[0].shape[-1])
    rest = [x for x in inputs if not isinstance(x, Tensor)]
    results = [function(*parts, *rest) for parts in zip(*(x.split(rows) for x in padded), strict=True)]
    if isinstance(results[0], Tensor):
        return torch.cat(results)[:, :width].reshape(tensors[0].shape)
    return tuple(torch.cat(part)[:, :width].reshape(tensors[0].shape) for part in zip(*results, strict=True))


_ELEMENTWISE = (gated_activation, plain_activation, cos_sin, soft_cap)
for _op in _ELEMENTWISE:
    _op.backend(NAME, _refuses)(partial(_by_rows, _op.reference))
