"""Scales for a cache of 8 bits, from what a model's keys and values are on calibration texts.

Taken at the place where a cache would take them: keys behind their rotation, by layer and head. A scale reaches the
largest number that was seen; what is larger later is cut off there.

Axes: T tokens · K key/value heads · D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenmill.formats.cache_scales import MOST, STRATEGIES, CacheScales, Kind
from tokenmill.models.walk import batches, check_documents
from tokenmill.nn.context import How, Packed
from tokenmill.nn.decoder import Decoder

LEAST = 1e-6
"""Of a scale: a head that is always zero needs one too."""


class _Heard(Packed):
    """Documents whose keys and values are listened to."""

    def __init__(
        self, lengths: Sequence[int], device: torch.device, largest: list[tuple[Tensor, Tensor] | None]
    ) -> None:
        super().__init__(lengths, device)
        self.largest = largest

    def attend(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, how: How) -> Tensor:
        found = tuple(x.float().abs().amax((0, 2)) for x in (k_TKD, v_TKD))
        known = self.largest[layer]
        if known is not None:
            found = tuple(torch.maximum(one, two) for one, two in zip(known, found, strict=True))
        self.largest[layer] = (found[0], found[1])
        return super().attend(layer, q_THD, k_TKD, v_TKD, how)


@torch.no_grad()
def cache_scales(decoder: Decoder, documents: Sequence[Tensor], kind: Kind) -> CacheScales:
    """By one pass over the documents (token ids, int64 [n] each) as the model is now.

    ConfigError where there are none, or they are not of this model's vocabulary.
    """
    check_documents(decoder, documents)
    largest: list[tuple[Tensor, Tensor] | None] = [None] * decoder.config.num_layers
    for batch in batches(documents):
        context = _Heard([len(document) for document in batch], decoder.device, largest)
        decoder.hidden(torch.cat(batch).to(decoder.device), context)
    heard = [pair for pair in largest if pair is not None]
    assert len(heard) == len(largest), "a layer without attention"
    keys, values = zip(*heard, strict=True)
    return CacheScales(kind, *(tuple(_scale(most_K, kind) for most_K in side) for side in (keys, values)))


def _scale(most_K: Tensor, kind: Kind) -> Tensor:
    if STRATEGIES[kind] == "tensor":
        most_K = most_K.amax().reshape(1)
    return (most_K / MOST[kind]).clamp(min=LEAST).cpu()
