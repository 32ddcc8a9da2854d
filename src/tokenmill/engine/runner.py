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
from tokenmill.nn.context import How
from tokenmill.nn.decoder import Decoder
from tokenmill.ops.attention import attention


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
        keys_BPKD, values_BPKD = self.cache.layers[layer]
        keys_BPKD.flatten(0, 1)[self.slots_T] = k_TKD.to(keys_BPKD.dtype)
        values_BPKD.flatten(0, 1)[self.slots_T] = v_TKD.to(values_BPKD.dtype)
        outputs = []
        for rows, q_QHD, end in zip(self.rows, q_THD.split(self.q_lens), self.kv_lens, strict=True):
            k_SKD = keys_BPKD[rows].flatten(0, 1)[:end].to(q_QHD.dtype)
            v_SKD = values_BPKD[rows].flatten(0, 1)[:end].to(q_QHD.dtype)
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

    def logits(self, hidden_TC: Tensor) -> Tensor:
        """Scores [T, V] of hidden states."""
        ...

    def refresh(self) -> None:
        """Take over weights that have changed."""
        ...


class TorchPass:
    """Runs a model's own code on torch. Memory of the cache is claimed when it is first written.

    ``cache``: the type its numbers are stored in, the model's own by default; others are cast back when they are read.
    """

    def __init__(self, model: Decoder, num_blocks: int, block_size: int, cache: torch.dtype | None = None) -> None:
        self.model, self.block_size = model, block_size

        def tensor(heads: int, size: int) -> Tensor:
            return torch.empty(num_blocks, block_size, heads, size, dtype=cache or model.dtype, device=model.device)

        parts = [layer.attention for layer in model.config.layers]
        self.layers = [tuple(tensor(a.num_kv_heads, a.head_dim) for _ in range(2)) for a in parts]

    def hidden(self, work: Sequence[Work]) -> Tensor:
        tokens = [token for piece in work for token in piece.sequence.tokens(piece.start, piece.start + piece.count)]
        row = torch.tensor(tokens, device=self.model.device)
        return self.model.hidden(row, Paged(self, work, self.model.device))

    def logits(self, hidden_TC: Tensor) -> Tensor:
        """The model's own."""
        return self.model.logits(hidden_TC)

    def refresh(self) -> None:
        """Nothing to do: it computes with the very weights."""


@torch.inference_mode()
def run(model: Decoder, passes: Passes, work: Sequence[Work]) -> Tensor:
    """One pass over the scheduled tokens; logits [n, V] of the pieces that reach their sequence's end, in order."""
    hidden_TC = passes.hidden(work)
    for piece, hidden_QC in zip(work, hidden_TC.split([piece.count for piece in work]), strict=True):
        score_prompt(model, piece.sequence.request, piece.start, hidden_QC)
    ends = accumulate(piece.count for piece in work)
    wanted = [end - 1 for piece, end in zip(work, ends, strict=True) if piece.last]
    return passes.logits(hidden_TC[wanted])
