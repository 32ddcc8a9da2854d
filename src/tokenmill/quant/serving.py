"""A model's layers rounded as it is loaded, without data: what ``LLM(..., quant="int8")`` answers with.

The numbers are those of ``tokenmill quantize --method rtn``, ``fp8`` and ``nf4``; which loses least for its size is
measured there, and methods that look at data lose less.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenmill.core.errors import UsageError, did_you_mean
from tokenmill.formats.bitsandbytes import nf4_codes
from tokenmill.formats.codes import Codes
from tokenmill.models.load import Model
from tokenmill.models.packing import can_pack, pack_floats, packed_codes, replace, replace_layer
from tokenmill.nn.decoder import Block
from tokenmill.nn.linear import Linear
from tokenmill.nn.quantised import QuantisedLinear, QuantisedStacked
from tokenmill.quant import nf4
from tokenmill.quant.grid import round_to_nearest
from tokenmill.quant.layers import layers_of, matrices
from tokenmill.quant.settings import Settings, settings

FORMATS: Mapping[str, Settings] = {
    "int8": settings("rtn", bits=8, group_size=32),
    "int4": settings("rtn", bits=4, group_size=32, symmetric=False),
    "fp8": settings("fp8"),
    "nf4": settings("nf4"),
}


def format_of(name: str) -> Settings:
    """What a name stands for; UsageError for one that is not known."""
    if name not in FORMATS:
        raise UsageError(f"quant {name!r} is not known{did_you_mean(name, FORMATS)}; {', '.join(FORMATS)} are")
    return FORMATS[name]


@torch.no_grad()
def quantise_loaded(model: Model, wanted: Settings, *, pack: bool) -> None:
    """Round a model's layers in place, each weight to its nearest number; head, embedding and routers stay.

    ``pack``: into the kernels' layout where this machine has kernels for the model.
    """
    network = model.decoder
    pack = pack and can_pack(network, network.device)
    for block in network.layers:
        assert isinstance(block, Block)
        for name, layer in layers_of(block).items():
            codes = [_codes(weight_OI, wanted) for weight_OI in matrices(name, layer).values()]
            if not isinstance(layer, Linear):
                replace(block, name, QuantisedStacked(codes, wanted.inputs))
            elif pack:
                replace_layer(block, name, packed_codes(codes[0]))
            else:
                replace(block, name, QuantisedLinear(codes[0], layer.bias, wanted.inputs))
    if pack:
        pack_floats(network)


def _codes(weight_OI: Tensor, wanted: Settings) -> Codes:
    if wanted.method == "nf4":
        return nf4_codes(nf4.quantize(weight_OI.to(torch.float16)))
    return round_to_nearest(weight_OI, wanted.grid(torch.float16).fitted(weight_OI.shape[1]))
