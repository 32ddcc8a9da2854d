"""A quantised model as a Hugging Face folder, built aside, read back, compared and renamed into place."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor

from tokenmill.core.errors import FormatError, UsageError
from tokenmill.formats import cache_scales
from tokenmill.formats.codes import Codes, stacked
from tokenmill.formats.hf_folder import write_hf_folder
from tokenmill.formats.nf4 import NF4
from tokenmill.formats.quantised_folder import Layout, QuantisedFolder
from tokenmill.models.load import build
from tokenmill.models.weights import Slot, attention_names, file_tensor, slots
from tokenmill.nn.decoder import Decoder
from tokenmill.nn.linear import Linear
from tokenmill.nn.moe import StackedLinear
from tokenmill.quant.grid import Grid
from tokenmill.quant.layers import Stored, as_codes
from tokenmill.quant.run import Quantised
from tokenmill.quant.settings import layout_for


def write_folder(quantised: Quantised, folder: Path, dtype: torch.dtype) -> Layout:
    """Write configuration and weights; ``dtype`` is that of what is not quantised. Returns the layout."""
    model = quantised.model
    by_slot = dict(_held(quantised))
    layout = layout_for(
        quantised.settings,
        {
            slot.theirs.removesuffix(".weight"): _grid(one, quantised.settings.group_size)
            for slot, one in by_slot.items()
        },
        _plain_layers(quantised, by_slot),
    )
    config = {key: value for key, value in model.config.items() if key != "torch_dtype"}
    config |= {"dtype": str(dtype).removeprefix("torch."), "quantization_config": layout.config()}
    write_hf_folder(
        folder, config, _tensors(quantised, by_slot, layout, dtype), generation_config=model.generation_config or None
    )
    return layout


def _shape(quantised: Quantised) -> Decoder:
    """The model as it was, without memory: its names and shapes."""
    return build(quantised.model.decoder.config)


def _held(quantised: Quantised) -> Iterator[tuple[Slot, Stored]]:
    """The codes of every tensor of the file that is quantised."""
    for slot in slots(_shape(quantised), quantised.model.family.weights):
        names = [name.removesuffix(".weight") for name in slot.ours]
        if not slot.ours[0].endswith(".weight") or not all(name in quantised.codes for name in names):
            continue
        parts: list[Stored] = []
        for name in names:
            codes = quantised.codes[name]
            parts.append(codes[slot.expert or 0] if isinstance(codes, list) else codes)
        yield slot, _as_one(slot, parts)


def _plain_layers(quantised: Quantised, held: Collection[Slot]) -> list[str]:
    """Linear layers within blocks that are not quantised (routers, what a budget kept), by their names in the file."""
    shape = _shape(quantised)
    found = [slot for slot in slots(shape, quantised.model.family.weights) if slot not in held]
    owners = {slot: slot.ours[0].rpartition(".")[0] for slot in found if slot.ours[0].startswith("layers.")}
    linear = [slot for slot, owner in owners.items() if isinstance(shape.get_submodule(owner), Linear | StackedLinear)]
    return [slot.theirs.removesuffix(".weight") for slot in linear if slot.theirs.endswith(".weight")]


def _as_one(slot: Slot, parts: list[Stored]) -> Stored:
    if len(parts) == 1:
        return parts[0]
    whole = [part for part in parts if isinstance(part, Codes) and (part.shape[0] == part.scales_OG.shape[0])]
    if len(whole) < len(parts):
        raise UsageError(f"{slot.theirs} holds several layers in one, which needs a scale for each row or group")
    return stacked(whole)


def _grid(stored: Stored, group_size: int) -> Grid:
    """How a matrix is quantised, for the layout; a row of just one group of the size asked for counts as such."""
    codes = as_codes(stored)
    one = codes.scales_OG.numel() == 1 and codes.shape[0] > 1
    size = 0 if one else codes.group_size
    if codes.scales_OG.shape[1] == 1 and not one and size != group_size:
        size = -1
    return Grid(codes.bits, size, codes.zeros_OG is None, "fp8" if codes.is_float else "int")


def _tensors(
    quantised: Quantised, held: dict[Slot, Stored], layout: Layout, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    decoder = quantised.model.decoder
    for slot in slots(_shape(quantised), quantised.model.family.weights):
        if slot in held:
            yield from layout.write(slot.theirs.removesuffix(".weight"), held[slot]).items()  # type: ignore[arg-type]
        else:
            parts = [_plain(decoder, name, slot.expert) for name in slot.ours]
            yield slot.theirs, file_tensor(decoder, slot, parts).to(dtype)
    if quantised.cache is not None:
        names = attention_names(quantised.model.family.weights, decoder.config.num_layers)
        for layer, name in enumerate(names):
            yield from cache_scales.written(quantised.cache, layer, name).items()


def _plain(decoder: Decoder, name: str, expert: int | None) -> Tensor:
    """A tensor that is not quantised; biases of quantised layers are buffers."""
    owner, _, leaf = name.rpartition(".")
    tensor = getattr(decoder.get_submodule(owner), leaf)
    assert isinstance(tensor, Tensor)
    return tensor.detach() if expert is None else tensor.detach()[expert]


def check_folder(folder: Path, quantised: Quantised) -> None:
    """Read a folder back; FormatError where a layer does not have the codes that were to be written."""
    read = QuantisedFolder(folder)
    for slot, stored in _held(quantised):
        codes, wanted = read.codes(slot.theirs), as_codes(stored)
        if codes is None or not _same(codes, wanted):
            raise FormatError(folder, f"layer {slot.theirs!r}", "reads back as something else than was written")


def _same(ours: Codes, theirs: Codes) -> bool:
    if isinstance(ours, NF4) or ours.shape != theirs.shape:
        return False
    return torch.equal(ours.codes_OI.view(torch.uint8), theirs.codes_OI.view(torch.uint8)) and torch.allclose(
        ours.dense(), theirs.dense(), rtol=1e-6, atol=0
    )
