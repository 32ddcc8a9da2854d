"""Weights into the layout of the native kernels, while they are loaded or afterwards.

Quantised blocks of a GGUF file are packed as they are, floats as they were loaded. What is packed serves faster and
takes no more memory than its file; it cannot be trained, saved or cast.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenmill.nn.config import MoEConfig
from tokenmill.nn.decoder import Decoder
from tokenmill.nn.embedding import Embedding
from tokenmill.nn.linear import Linear
from tokenmill.nn.packed import PackedEmbedding, PackedLinear
from tokenmill.ops.native import native
from tokenmill.ops.packed import FLOATS, QUANTISED, Packed

BLOCKS = (*QUANTISED, "BF16", "F32")
"""Types of GGUF tensors whose bytes can be packed as they are."""


def can_pack(network: nn.Module, device: torch.device) -> bool:
    """Whether this machine has kernels for packed weights, and this model only layers that they serve."""
    if device.type != "cpu" or not isinstance(network, Decoder) or native() is None:
        return False
    return not any(isinstance(layer.mlp, MoEConfig) for layer in network.config.layers)


def takes_blocks(network: nn.Module, parameter: str) -> bool:
    """Whether a parameter is the weight of a layer that can be packed."""
    owner, _, leaf = parameter.rpartition(".")
    return leaf == "weight" and type(network.get_submodule(owner)) in (Linear, Embedding)


def put_blocks(network: nn.Module, parameter: str, kind: str, columns: int, blocks: Tensor) -> None:
    """Replace the layer of a weight by a packed one made from a GGUF tensor's bytes [out, bytes a row]."""
    replace_layer(network, parameter.rpartition(".")[0], Packed.from_blocks(kind, columns, blocks))


def pack_floats(network: nn.Module) -> None:
    """Pack every plain layer that is left, and turn what remains (norms, biases) into float32."""
    for name, module in list(network.named_modules()):
        if type(module) in (Linear, Embedding) and module.weight.dtype in FLOATS:
            replace_layer(network, name, Packed.from_floats(module.weight))
    network.float()


def replace_layer(network: nn.Module, name: str, packed: Packed) -> None:
    """Put a packed layer where a plain one stands."""
    parent, _, leaf = name.rpartition(".")
    old = network.get_submodule(name)
    new = PackedEmbedding(packed) if isinstance(old, Embedding) else PackedLinear(packed, old.bias)  # type: ignore[arg-type]
    setattr(network.get_submodule(parent), leaf, new)
