"""Packed documents whose neighbours begin alike: what they have in common goes through the layers once.

The answers of a rollout's prompt lie one after the other, and so do the two sides of a preference pair. A token's
hidden state depends on what stands before it alone, so the prompt's are the same in all of them. Only attention is
computed over whole documents, by the kernels that training always uses; everything else sees the shorter row.

Axes: T tokens of all documents · R tokens of the row, beginnings once · C hidden size · H heads · D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from tokenmill.nn.context import How, Packed
from tokenmill.nn.decoder import Decoder
from tokenmill.ops.attention import attention

LEAST_SAVED = 1 / 8
"""Share of the tokens below which a row stays as it is."""
STILL_ALIKE = 0.75
"""Neighbours that would leave less of a common beginning than this begin a new one."""


def hidden_states(model: Decoder, tokens_T: Tensor, lengths: Sequence[int]) -> Tensor:
    """:meth:`Decoder.hidden` of packed documents, [T, C]."""
    if model.prompt is None and not any(rotary.by_length for rotary in model.rotaries.values()):
        runs = runs_of(tokens_T.cpu().numpy(), lengths)
        saved = sum((count - 1) * shared for count, shared in runs)
        if saved >= LEAST_SAVED * len(tokens_T):
            branched = Branched(lengths, runs, tokens_T.device)
            hidden_RC = model.hidden(tokens_T[branched.rows_R], branched)
            return hidden_RC.index_select(0, branched.places_T)
    return model.hidden(tokens_T, Packed(lengths, tokens_T.device))


def runs_of(tokens: np.ndarray, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of neighbouring documents: how many, and how many first tokens they share (0 where one stands alone)."""
    runs = list[tuple[int, int]]()
    first, count, shared = tokens[:0], 0, 0
    for document in np.split(tokens, list(accumulate(lengths))[:-1]):
        common = _common(first[:shared], document)
        if common and (count == 1 or common >= STILL_ALIKE * shared):
            count, shared = count + 1, common
            continue
        if count:
            runs.append((count, shared if count > 1 else 0))
        first, count, shared = document, 1, len(document)
    return [*runs, (count, shared if count > 1 else 0)]


def _common(one: np.ndarray, other: np.ndarray) -> int:
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


class Branched:
    """The attention context of a row in which each run's beginning stands once, followed by what is left of its
    documents. ``rows_R``: where the row's tokens stand in the documents; ``places_T``: the other way round."""

    def __init__(self, lengths: Sequence[int], runs: Sequence[tuple[int, int]], device: torch.device) -> None:
        self.lengths = list(lengths)
        self._sizes = list[int]()  # of the row's pieces: a beginning, its ends, the next beginning, ...
        self._whole = list[int]()  # the pieces of every document, two each
        self._kept = list[int]()  # of those, which the row takes back
        rows, places, positions, ends = list[Tensor](), list[Tensor](), list[Tensor](), list[int]()
        start = at = 0  # in the documents, in the row
        document = iter(self.lengths)
        for count, shared in runs:
            beginning, trunk = len(self._sizes), torch.arange(at, at + shared)
            for number in range(count):
                length = next(document)
                if number == 0:
                    self._add(2 * len(places), shared)
                    rows.append(torch.arange(start, start + shared))
                    positions.append(torch.arange(shared))
                    ends.append(length)
                    at += shared
                self._whole += [beginning, len(self._sizes)]
                self._add(2 * len(places) + 1, length - shared)
                rows.append(torch.arange(start + shared, start + length))
                positions.append(torch.arange(shared, length))
                ends.append(length)
                places.append(torch.cat([trunk, torch.arange(at, at + length - shared)]))
                start, at = start + length, at + length - shared
        self.rows_R, self.places_T = torch.cat(rows).to(device), torch.cat(places).to(device)
        self.positions_T = torch.cat(positions).to(device)
        self.lengths_T = torch.tensor(ends).repeat_interleave(torch.tensor(self._sizes)).to(device)

    def _add(self, kept: int, size: int) -> None:
        self._kept.append(kept)
        self._sizes.append(size)

    def attend(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, how: How) -> Tensor:
        """Over the documents as if each stood alone; [R, H, D]."""
        whole = [self._documents(part) for part in (q_THD, k_TKD, v_TKD)]
        out_THD = attention(*whole, q_lens=self.lengths, kv_lens=self.lengths, **how)
        parts = out_THD.split([self._sizes[piece] for piece in self._whole])
        return torch.cat([parts[i] for i in self._kept])

    def _documents(self, row: Tensor) -> Tensor:
        pieces = row.split(self._sizes)
        return torch.cat([pieces[piece] for piece in self._whole])
