"""The roof over decoding: how fast this machine streams bytes, against how many a token has to read.

At batch 1 every new token reads all weights that it meets once, and the keys and values of the text so far. No program
can write faster than memory gives these.
"""

from __future__ import annotations

import time

import torch

from tokenmill.formats import TensorFile
from tokenmill.nn.config import DecoderConfig
from tokenmill.nn.cost import kv_bytes, parameters

CACHE_BYTES = 2  # of a cached value, as the peers keep it (16 bit)


def stream_bandwidth(num_bytes: int, passes: int = 12) -> float:
    """Bytes a second at which torch's threads read ``num_bytes`` that lie in memory one after the other.

    The best pass of two kernels: a matrix-vector product, and a sum of integers, which has less to compute. As large
    as the weights in question, because a part of them may live in the processor's cache.
    """
    columns = 4096
    rows = max(2, num_bytes // (4 * columns))
    weights = torch.ones(rows, columns)
    vector = torch.ones(columns)
    words = weights.view(torch.int32).flatten()
    best = float("inf")
    for _ in range(passes):
        for kernel in (lambda: torch.mv(weights, vector), words.max):
            began = time.perf_counter()
            kernel()
            best = min(best, time.perf_counter() - began)
    return weights.nbytes / best


def weight_bytes(file: TensorFile, config: DecoderConfig) -> int:
    """Bytes of the file's weights that one token reads.

    All of them, but an embedding that is not the output matrix too, of which it reads one row; with a mixture of
    experts, those of the experts that one token meets.
    """
    table = (config.vocab_size, config.hidden_size)
    total = 0
    for name, info in file.infos().items():
        embedding = tuple(info.shape) == table and not name.startswith(("output", "lm_head"))
        if config.tied_embeddings or not embedding:
            total += info.nbytes
    return int(total * parameters(config, active=True) / parameters(config))


def roof_tok_s(bandwidth: float, weights: int, config: DecoderConfig, context: float) -> float:
    """Tokens a second at batch 1 that ``bandwidth`` (bytes a second) allows with ``context`` tokens of text so far."""
    return bandwidth / (weights + kv_bytes(config, int(context), CACHE_BYTES))
