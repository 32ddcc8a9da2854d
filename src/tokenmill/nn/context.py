"""How an attention layer finds the keys and values it may look at.

A layer computes its queries, keys and values and hands them to the context of this forward pass, which knows whose
tokens they are. Training packs documents (:class:`Packed`), generation appends to caches (:class:`Cached`), a paged
engine brings its own: the modules stay the same, which is why trained and served log-probabilities agree.

Axes as in ``ops/attention.py``: T tokens of all sequences in one row, H heads, K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypedDict

import torch
from torch import Tensor

from tokenmill.ops.attention import attention
from tokenmill.ops.full_attention import full_attention


class How(TypedDict):
    """The part of an attention call that the layer decides; see :func:`tokenmill.ops.attention.attention`."""

    scale: float
    window: int | None
    softcap: float | None
    alibi_H: Tensor | None


class AttentionContext(Protocol):
    positions_T: Tensor
    """Position of every token in its own sequence, int64."""
    lengths_T: Tensor
    """Length of every token's own sequence after this pass (what length-dependent rotary scalings ask), int64."""

    def attend(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, how: How) -> Tensor:
        """Attention of layer number ``layer`` over the right keys; returns [T, H, D]."""
        ...


def _repeat(values: Sequence[int], counts: Sequence[int], device: torch.device | None) -> Tensor:
    return torch.tensor(values, device=device).repeat_interleave(torch.tensor(counts, device=device))


class Packed:
    """Whole documents one after the other, each causal and blind to the others. No cache: training and scoring."""

    def __init__(self, lengths: Sequence[int], device: torch.device | None = None) -> None:
        self.lengths = list(lengths)
        self.positions_T = torch.cat([torch.arange(n, device=device) for n in self.lengths])
        self.lengths_T = _repeat(self.lengths, self.lengths, device)

    def attend(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, how: How) -> Tensor:
        return attention(q_THD, k_TKD, v_TKD, q_lens=self.lengths, kv_lens=self.lengths, **how)


class Bidirectional:
    """Whole documents one after the other, blind to each other, every token seeing all of its own (encoders).

    ``bias_HR``: added to the scores by distance, see ``ops/full_attention.py``. ``causal``: only what stands before.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        device: torch.device | None = None,
        *,
        bias_HR: Tensor | None = None,
        causal: bool = False,
    ) -> None:
        self.lengths, self.bias_HR, self.causal = list(lengths), bias_HR, causal
        self.positions_T = torch.cat([torch.arange(n, device=device) for n in self.lengths])
        self.lengths_T = _repeat(self.lengths, self.lengths, device)

    def attend(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, how: How) -> Tensor:
        assert not how["window"], "no encoder has windows"
        assert not how["softcap"], "no encoder caps its scores"
        return full_attention(
            q_THD,
            k_TKD,
            v_TKD,
            q_lens=self.lengths,
            kv_lens=self.lengths,
            scale=how["scale"],
            bias_HR=self.bias_HR,
            causal=self.causal,
        )


class SequenceCache:
    """Keys and values of one sequence, layer by layer, in buffers [capacity, K, D] that double when they are full.

    ``length`` counts the positions that every layer has; it moves when a pass is over (:meth:`Cached.advance`), so a
    pass that fails half-way leaves the cache as it was.
    """

    def __init__(self, num_layers: int) -> None:
        self.length = 0
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers

    def extend(self, layer: int, k_QKD: Tensor, v_QKD: Tensor) -> tuple[Tensor, Tensor]:
        """Write new rows behind ``length`` and return all rows up to them, as views [length + Q, K, D]."""
        end = self.length + k_QKD.shape[0]
        self._keys[layer] = keys = _grown(self._keys[layer], end, self.length, k_QKD)
        self._values[layer] = values = _grown(self._values[layer], end, self.length, v_QKD)
        keys[self.length : end] = k_QKD
        values[self.length : end] = v_QKD
        return keys[:end], values[:end]

    def truncate(self, length: int) -> None:
        """Forget the positions from ``length`` on (a chat that goes back, a draft that was refused)."""
        self.length = min(self.length, length)


def _grown(buffer: Tensor | None, needed: int, used: int, like_QKD: Tensor) -> Tensor:
    if buffer is not None and buffer.shape[0] >= needed:
        return buffer
    grown = like_QKD.new_empty(max(256, 1 << (needed - 1).bit_length()), *like_QKD.shape[1:])
    if buffer is not None:
        grown[:used] = buffer[:used]
    return grown


class Cached:
    """New tokens of several sequences with a cache each: ``q_lens[i]`` tokens of the row belong to ``caches[i]``."""

    def __init__(
        self, caches: Sequence[SequenceCache], q_lens: Sequence[int], device: torch.device | None = None
    ) -> None:
        self.caches, self.q_lens = caches, list(q_lens)
        ends = [cache.length + n for cache, n in zip(caches, self.q_lens, strict=True)]
        spans = zip(caches, ends, strict=True)
        self.positions_T = torch.cat([torch.arange(cache.length, end, device=device) for cache, end in spans])
        self.lengths_T = _repeat(ends, self.q_lens, device)

    def attend(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, how: How) -> Tensor:
        rows = zip(
            self.caches, q_THD.split(self.q_lens), k_TKD.split(self.q_lens), v_TKD.split(self.q_lens), strict=True
        )
        outputs = []
        for cache, q_QHD, k_QKD, v_QKD in rows:
            k_SKD, v_SKD = cache.extend(layer, k_QKD, v_QKD)
            lens = {"q_lens": [q_QHD.shape[0]], "kv_lens": [k_SKD.shape[0]]}
            outputs.append(attention(q_QHD, k_SKD, v_SKD, **lens, **how))
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def advance(self) -> None:
        """The pass is over: its tokens now belong to the caches. To be called once, by whoever ran the model."""
        for cache, n in zip(self.caches, self.q_lens, strict=True):
            cache.length += n
