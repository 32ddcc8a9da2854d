"""How much work a training step is, and how much this machine can do: the two halves of "share of peak FLOPs".

The share is Model FLOPs Utilisation (PaLM, arXiv 2204.02311, appendix B): work that the model needs by its definition,
so computing activations again does not count. The peak is measured here, as data sheets know nothing of a laptop's
cooling or of the cores that a container was given.
"""

from __future__ import annotations

import time

import torch
from torch import nn

from tokenmill.nn import cost
from tokenmill.nn.config import DecoderConfig

PEAK_SECONDS = 0.25
"""How long the measurement may take."""


def training_flops(model: nn.Module, context: int) -> float:
    """Floating-point operations of a training step for one token whose document has ``context`` tokens.

    Forward once; backward once for the inputs of every layer, and once for the weights that are trained. Attention is
    causal: a token sees half of the document. A model that is no decoder counts two operations a weight.
    """
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    config = getattr(model, "config", None)
    if isinstance(config, DecoderConfig):
        forward = cost.flops_per_token(config, max(1, context // 2))
    else:
        forward = 2.0 * total
    return forward * (2 + trained / max(1, total))


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of the best of several square matrix products on one device, in ``dtype``."""
    size = 4096 if device.type == "cuda" else 1024
    a = torch.ones(size, size, dtype=dtype, device=device)
    b = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    begin = time.perf_counter()
    with torch.no_grad():
        while time.perf_counter() - begin < PEAK_SECONDS or best == float("inf"):
            best = min(best, _seconds(a, b))
    return 2 * size**3 / best


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    begin = time.perf_counter()
    a @ b
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - begin
