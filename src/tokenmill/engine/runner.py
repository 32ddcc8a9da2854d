"""The paged KV cache and the pass over it: the only part of the engine that touches tensors.

Axes: B blocks · P slots of a block · K key/value heads · D head size · T tokens of the pass · S keys of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from tokenmill.engine.prompt_scores import score_prompt
from tokenmill.engine.scheduler import Work
from tokenmill.formats.cache_scales import MOST
from tokenmill.nn.context import How
from tokenmill.nn.decoder import Decoder
from tokenmill.ops.attention import attention

SCALED = {torch.int8: "int8", torch.float8_e4m3fn: "fp8"}
"""Types of a cache that need scales, by the names of these."""


class Side:
    """Keys or values of one layer, [B, P, K, D]: numbers of a float type, or codes times given scales."""

    def __init__(self, rows_BPKD: Tensor, scale_K: Tensor | None = None) -> None:
        """``scale_K``: [K] or [1], beside int8 or float8_e4m3fn; what it does not reach is cut off."""
        self.rows_BPKD = rows_BPKD
        self.scale_K1 = None if scale_K is None else scale_K.to(rows_BPKD.device)[:, None]

    def write(self, slots_T: Tensor, x_TKD: Tensor) -> None:
        """Put rows into their slots."""
        rows_BPKD, stored = self.rows_BPKD, x_TKD.to(self.rows_BPKD.dtype)
        if self.scale_K1 is not None:
            steps_TKD = x_TKD.float() / self.scale_K1
            most = MOST["int8" if rows_BPKD.dtype == torch.int8 else "fp8"]
            steps_TKD = steps_TKD.round() if rows_BPKD.dtype == torch.int8 else steps_TKD
            # as bytes: torch does not scatter FP8 on every device
            stored = steps_TKD.clamp(-most, most).to(rows_BPKD.dtype).view(torch.int8)
            rows_BPKD = rows_BPKD.view(torch.int8)
        rows_BPKD.flatten(0, 1)[slots_T] = stored

    def read(self, rows: slice | Tensor, end: int, dtype: torch.dtype) -> Tensor:
        """The first ``end`` positions of a sequence's blocks, [S, K, D]."""
        if self.scale_K1 is None:
            return self.rows_BPKD[rows].flatten(0, 1)[:end].to(dtype)
        codes_SKD = self.rows_BPKD.view(torch.int8)[rows].flatten(0, 1)[:end].view(self.rows_BPKD.dtype)
        return (codes_SKD.float() * self.scale_K1).to(dtype)


class Paged:
    """The attention context of one pass: new keys go to their slots, each sequence sees the blocks of its own table."""

    def __init__(self, cache: TorchPass, work: Sequence[Work], device: torch.device) -> None:
        self.cache = cache
        self.q_lens = [piece.count for piece in work]
        self.kv_lens = [piece.start + piece.count for piece in work]
        size = cache.block_size
        blocks = [piece.sequence.blocks[: -(-end // size)] for piece, end in zip(work, self.kv_lens, strict=True)]
        tables = [torch.tensor(table, device=device) for table in blocks]
        self.rows = [_rows(table, tensor) for table, tensor in zip(blocks, tables, strict=True)]
        positions = [torch.arange(piece.start, piece.start + piece.count, device=device) for piece in work]
        self.positions_T = torch.cat(positions)
        # A prompt counts whole from its first chunk on, an answer as far as it goes: so chunks and preemption leave
        # the angles that depend on the length as they are
        prompts = [len(piece.sequence.request.prompt) for piece in work]
        self.lengths_T = torch.cat([(p + 1).clamp(min=n) for p, n in zip(positions, prompts, strict=True)])
        self.slots_T = torch.cat(
            [table[p // size] * size + p % size for table, p in zip(tables, positions, strict=True)]
        )

    def attend(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, how: How) -> Tensor:
        keys, values = self.cache.layers[layer]
        keys.write(self.slots_T, k_TKD)
        values.write(self.slots_T, v_TKD)
        outputs = []
        for rows, q_QHD, end in zip(self.rows, q_THD.split(self.q_lens), self.kv_lens, strict=True):
            k_SKD, v_SKD = (side.read(rows, end, q_QHD.dtype) for side in (keys, values))
            outputs.append(attention(q_QHD, k_SKD, v_SKD, q_lens=[q_QHD.shape[0]], kv_lens=[end], **how))
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _rows(blocks: list[int], table: Tensor) -> slice | Tensor:
    """How to index a sequence's blocks: as a view where they follow each other, as a gathered copy elsewhere."""
    first, count = blocks[0], len(blocks)
    return slice(first, first + count) if blocks == list(range(first, first + count)) else table


class Passes(Protocol):
    """A model with a paged cache."""

    def hidden(self, work: Sequence[Work]) -> Tensor:
        """Hidden states [T, C] of the scheduled tokens; their keys and values are in the cache then."""
        ...

    def logits(self, hidden_TC: Tensor, wanted: list[int]) -> Tensor:
        """Scores [n, V] of some rows of what :meth:`hidden` has just returned; valid until the next pass."""
        ...

    def refresh(self) -> None:
        """Take over weights that have changed."""
        ...


class TorchPass:
    """Runs a model's own code on torch. Memory of the cache is claimed when it is first written.

    ``cache``: the type its numbers are stored in, the model's own by default; others are cast back when they are read.
    One of 8 bits takes the scales that the model's folder has.
    """

    def __init__(self, model: Decoder, num_blocks: int, block_size: int, cache: torch.dtype | None = None) -> None:
        self.model, self.block_size = model, block_size

        def tensor(heads: int, size: int) -> Tensor:
            return torch.empty(num_blocks, block_size, heads, size, dtype=cache or model.dtype, device=model.device)

        parts = [layer.attention for layer in model.config.layers]
        scales = model.cache_scales if cache in SCALED else None
        sides = [scales.keys, scales.values] if scales is not None else [[None] * len(parts)] * 2
        self.layers = [
            tuple(Side(tensor(a.num_kv_heads, a.head_dim), side[layer]) for side in sides)
            for layer, a in enumerate(parts)
        ]

    def hidden(self, work: Sequence[Work]) -> Tensor:
        tokens = [token for piece in work for token in piece.sequence.tokens(piece.start, piece.start + piece.count)]
        row = torch.tensor(tokens, device=self.model.device)
        return self.model.hidden(row, Paged(self, work, self.model.device))

    def logits(self, hidden_TC: Tensor, wanted: list[int]) -> Tensor:
        """The model's own."""
        return self.model.logits(hidden_TC[wanted])

    def refresh(self) -> None:
        """Nothing to do: it computes with the very weights."""


@torch.inference_mode()
def run(model: Decoder, passes: Passes, work: Sequence[Work]) -> Tensor:
    """One pass over the scheduled tokens; logits [n, V] of the pieces that reach their sequence's end, in order, valid
    until the next pass."""
    hidden_TC = passes.hidden(work)
    ends = list(accumulate(piece.count for piece in work))
    for piece, end in zip(work, ends, strict=True):
        if piece.sequence.request.unscored is not None:
            score_prompt(model, piece.sequence.request, piece.start, hidden_TC[end - piece.count : end])
    return passes.logits(hidden_TC, [end - 1 for piece, end in zip(work, ends, strict=True) if piece.last])
