"""First weights of a new model: a normal cut at three sigma, residual outputs smaller by their number.

``residual / sqrt(2 L)`` as GPT-2 and OLMo have it: every layer adds two outputs to the stream, whose size then does
not depend on the depth. Norms begin at one, biases at zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tokenmill.models.load import Model, build, read_any_config
from tokenmill.nn.encoder_decoder import EncoderDecoder
from tokenmill.nn.norm import Norm

RESIDUAL = ("attn.out.weight", "mlp.down.weight", "experts.down.weight", "experts.down")


def new_weights(config: Mapping[str, Any], *, std: float, seed: int, dtype: torch.dtype, device: torch.device) -> Model:
    """A model of this ``config.json``, the same on every machine for one seed."""
    family, network_config = read_any_config(config, "the new model")
    network = build(network_config)
    initialise(network, std=std, seed=seed, dtype=dtype, device=device)
    return Model(network, family, dict(config))


def initialise(network: nn.Module, *, std: float, seed: int, dtype: torch.dtype, device: torch.device) -> None:
    """Give every parameter of a network on the meta device its first values."""
    draw = torch.Generator().manual_seed(seed)
    layers = max((len(m) for m in network.modules() if isinstance(m, nn.ModuleList)), default=1)
    gains = {id(p) for m in network.modules() if isinstance(m, Norm) and not m.config.unit_offset for p in [m.weight]}
    for name, parameter in list(network.named_parameters()):
        values = torch.zeros(parameter.shape)
        if id(parameter) in gains:
            values += 1.0
        elif parameter.ndim >= 2:
            deviation = std / math.sqrt(2 * layers) if name.endswith(RESIDUAL) else std
            if name == "embed.weight" and isinstance(network, EncoderDecoder):
                deviation /= network.config.logit_scale  # T5's head is this table, scaled down
            nn.init.trunc_normal_(values, 0.0, deviation, -3 * deviation, 3 * deviation, generator=draw)
        owner, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(owner), leaf, nn.Parameter(values.to(device, dtype)))
