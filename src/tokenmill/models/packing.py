"""Weights into the layout of the native kernels, while they are loaded or afterwards.

Quantised blocks of a GGUF file are packed as they are, so are codes of a quantised folder where the kernels know them;
floats as they were loaded. What is packed serves faster and takes no more memory than its file; it cannot be trained,
saved or cast. Without kernels codes stay codes, in layers that unpack them for each product (``nn/quantised.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenmill.formats.codes import Codes
from tokenmill.nn.config import MoEConfig
from tokenmill.nn.decoder import Decoder
from tokenmill.nn.embedding import Embedding
from tokenmill.nn.linear import Linear
from tokenmill.nn.packed import PackedEmbedding, PackedLinear
from tokenmill.nn.quantised import QuantisedLinear
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


def put_codes(network: nn.Module, parameter: str, codes: Codes, *, pack: bool, inputs: str | None) -> bool:
    """Replace the linear layer of a weight by one over codes; False for what is no linear layer.

    ``pack``: into the kernels' layout, which takes inputs in 16 bits whatever ``inputs`` says (closer to the original
    than what the layout asks for); otherwise inputs are rounded as it says.
    """
    name, _, leaf = parameter.rpartition(".")
    old = network.get_submodule(name)
    if leaf != "weight" or type(old) is not Linear:
        return False
    if pack:
        replace_layer(network, name, packed_codes(codes))
    else:
        replace(network, name, QuantisedLinear(codes, old.bias, inputs))
    return True


def packed_codes(codes: Codes) -> Packed:
    """Codes as the kernels multiply them: as they are, or as bfloat16 where the kernels do not know them (FP8, levels,
    scattered groups, groups of odd sizes)."""
    rows, columns = codes.shape
    groups = codes.scales_OG.shape[1]
    runs = columns // 32 // groups if columns % (32 * groups) == 0 else 0  # of 32 columns in a group
    even = groups == 1 or (runs > 0 and runs & (runs - 1) == 0)
    known = (codes.bits <= 4) if codes.zeros_OG is not None else codes.bits in (2, 3, 4, 8)
    if codes.is_float or codes.levels_OK is not None or codes.groups_I is not None or not known or not even:
        return Packed.from_floats(codes.dense(torch.bfloat16))
    scales_OG = codes.scales_OG.expand(rows, -1)
    if codes.bits == 8:
        return Packed.from_codes(codes.codes_OI, scales_OG, None, 8)
    return Packed.from_codes(codes.codes_OI, scales_OG, codes.minima().expand(rows, -1), 4)


def pack_floats(network: nn.Module) -> None:
    """Pack every plain layer that is left, and turn what remains (norms, biases) into float32."""
    for name, module in list(network.named_modules()):
        if type(module) in (Linear, Embedding) and module.weight.dtype in FLOATS:
            replace_layer(network, name, Packed.from_floats(module.weight))
    network.float()


def replace_layer(network: nn.Module, name: str, packed: Packed) -> None:
    """Put a packed layer where a plain one stands."""
    old = network.get_submodule(name)
    new = PackedEmbedding(packed) if isinstance(old, Embedding) else PackedLinear(packed, old.bias)  # type: ignore[arg-type]
    replace(network, name, new)


def replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer where another one stands."""
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, layer)
