"""Weight names live in tables. One table serves both directions: reading a file into a decoder, and writing one.

A :class:`Row` pairs a name in the file (``{layer}`` and ``{expert}`` are counted up; ``.weight`` and ``.bias`` follow)
with a module of ours, or with several where the file keeps them fused. What the file does to the tensor on top is a
field of the row. A tensor that no row explains, or one that is missing, is an error; all of them in one message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenmill.core.errors import ConfigError, FormatError
from tokenmill.formats.codes import Codes
from tokenmill.formats.gguf import GGUFFile
from tokenmill.formats.quantised_folder import QuantisedFolder
from tokenmill.formats.tensors import TensorFile
from tokenmill.models.packing import BLOCKS, put_blocks, put_codes, takes_blocks
from tokenmill.nn.decoder import Decoder
from tokenmill.nn.encoder import Encoder
from tokenmill.nn.encoder_decoder import EncoderDecoder
from tokenmill.nn.linear import Linear, LinearLayer

Network = Decoder | Encoder | EncoderDecoder


@dataclass(frozen=True)
class Row:
    theirs: str
    ours: tuple[str, ...]
    """More than one: their rows one after the other are in the file's one tensor (fused QKV, fused gate and up)."""
    transposed: bool = False
    """The file has [in, out] (GPT-2's Conv1D)."""
    interleaved: bool = False
    """Rotary pairs are neighbours in the file, halves apart with us (GGUF's llama)."""
    offset: float = 0.0
    """The file's values minus ours (GGUF adds the one that Gemma's norms leave out)."""


Table = tuple[Row, ...]


def row(theirs: str, *ours: str, **how: bool | float) -> Row:
    return Row(theirs, ours, **how)  # type: ignore[arg-type]


def changed(table: Table, *rows: Row, without: Iterable[str] = ()) -> Table:
    """``table`` with rows replaced that mean the same modules as the new ones, or whose name is in ``without``."""
    ours = {name for new in rows for name in new.ours}
    kept = (old for old in table if not ours & set(old.ours) and old.theirs not in set(without))
    return (*kept, *rows)


@dataclass(frozen=True)
class Slot:
    """One tensor of the file and the parameters it fills; ``expert`` is its place in a stacked parameter."""

    theirs: str
    ours: tuple[str, ...]
    row: Row
    expert: int | None


def slots(model: Network, table: Table) -> Iterator[Slot]:
    """Expand a table over layers and experts to the parameters that this model really has."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for entry in table:
        layers = range(model.config.num_layers) if "{layer}" in entry.theirs else range(1)
        for layer in layers:
            for suffix in (".weight", ".bias"):
                ours = tuple(name.replace("{layer}", str(layer)) + suffix for name in entry.ours)
                if ours[0] not in shapes:
                    continue
                theirs = entry.theirs.replace("{layer}", str(layer)) + suffix
                if "{expert}" not in theirs:
                    yield Slot(theirs, ours, entry, None)
                    continue
                for expert in range(shapes[ours[0]][0]):
                    yield Slot(theirs.replace("{expert}", str(expert)), ours, entry, expert)


@dataclass(frozen=True)
class Named:
    """A module as the file names it, and the modules of ours that hold it (several where the file fuses them)."""

    theirs: str
    ours: tuple[str, ...]
    row: Row


def modules_by_name(model: Network, table: Table) -> list[Named]:
    """The modules of this model that a table names, experts aside; what an adapter has put in their place counts."""
    known = {name for name, _ in model.named_modules()}
    found = []
    for entry in table:
        if "{expert}" in entry.theirs:
            continue
        for layer in range(model.config.num_layers) if "{layer}" in entry.theirs else range(1):
            ours = tuple(name.replace("{layer}", str(layer)) for name in entry.ours)
            if ours[0] in known:
                found.append(Named(entry.theirs.replace("{layer}", str(layer)), ours, entry))
    return found


def attention_names(table: Table, num_layers: int) -> list[str]:
    """What holds a layer's attention projections in the file, layer by layer (``model.layers.0.self_attn``)."""
    (entry,) = (entry for entry in table if "layers.{layer}.attn.k" in entry.ours)
    return [entry.theirs.replace("{layer}", str(layer)).rpartition(".")[0] for layer in range(num_layers)]


def rows_from_file(tensor: Tensor, how: Row, model: Network) -> Tensor:
    """Rows [out, ...] of the file in our order. A file's transposition does not concern what has rows of its own."""
    return _rotary_pairs(tensor, _head_dim(model), to_neighbours=False) if how.interleaved else tensor


def rows_to_file(tensor: Tensor, how: Row, model: Network) -> Tensor:
    """The way back of :func:`rows_from_file`."""
    return _rotary_pairs(tensor, _head_dim(model), to_neighbours=True) if how.interleaved else tensor


def _rotary_pairs(tensor: Tensor, head_dim: int, *, to_neighbours: bool) -> Tensor:
    """Reorder a head's rows between [2, D/2] (halves apart, ours) and [D/2, 2] (neighbours)."""
    inner = (2, head_dim // 2) if to_neighbours else (head_dim // 2, 2)
    order = torch.arange(len(tensor), device=tensor.device).view(-1, *inner).transpose(1, 2).flatten()
    return tensor.index_select(0, order)  # whole rows: a transposed copy of bytes takes ten times as long


def _from_file(tensor: Tensor, how: Row, head_dim: int) -> Tensor:
    if how.transposed and tensor.ndim == 2:
        tensor = tensor.t().contiguous()
    if how.interleaved:
        tensor = _rotary_pairs(tensor, head_dim, to_neighbours=False)
    return tensor - how.offset if how.offset else tensor


def _to_file(tensor: Tensor, how: Row, head_dim: int) -> Tensor:
    if how.offset:
        tensor = tensor.float() + how.offset  # in float32, see load_weights
    if how.interleaved:
        tensor = _rotary_pairs(tensor, head_dim, to_neighbours=True)
    return tensor.t().contiguous() if how.transposed and tensor.ndim == 2 else tensor


def _head_dim(model: Network) -> int:
    return model.config.layers[0].attention.head_dim


def _shape_in_file(slot: Slot, shapes: dict[str, torch.Size]) -> tuple[int, ...]:
    first = shapes[slot.ours[0]]
    shape = list(first[1:] if slot.expert is not None else first)
    if len(slot.ours) > 1:
        shape[0] = sum(shapes[name][0] for name in slot.ours)
    return tuple(reversed(shape)) if slot.row.transposed else tuple(shape)


def check_names(model: Network, file: TensorFile, table: Table, ignored: str = r"$^") -> list[Slot]:
    """Match file and model; raise FormatError with every tensor that is missing, misshapen or not understood."""
    infos, problems = file.infos(), []
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    wanted_slots = list(slots(model, table))
    for slot in wanted_slots:
        wanted = _shape_in_file(slot, shapes)
        if slot.theirs not in infos:
            problems.append(f"{slot.theirs} is missing (shape {list(wanted)})")
        elif (shape := tuple(infos[slot.theirs].shape)) != wanted:
            problems.append(f"{slot.theirs} has shape {list(shape)}, the configuration says {list(wanted)}")
    known = {slot.theirs for slot in wanted_slots}
    problems += [f"{name} is not understood" for name in infos if name not in known and not re.search(ignored, name)]
    if problems:
        shown = [*problems[:20], *([f"… and {len(problems) - 20} more"] if len(problems) > 20 else [])]
        raise FormatError(file.path, "tensors", "do not fit the configuration:\n  " + "\n  ".join(shown))
    unfilled = set(shapes) - {name for slot in wanted_slots for name in slot.ours}
    assert not unfilled, f"no row of the weight table fills {sorted(unfilled)}"
    return wanted_slots


def load_weights(
    model: Network,
    file: TensorFile,
    table: Table,
    *,
    dtype: torch.dtype,
    device: torch.device,
    ignored: str = r"$^",
    pack: bool = False,
    hold: bool = False,
    filled: Callable[[], Collection[str]] = tuple,
) -> None:
    """Fill a decoder built on the meta device. A tensor whose dtype and layout fit stays a view of the mapped file.

    ``pack``: quantised blocks and codes become packed layers instead of parameters (``packing.py``); ``hold``: codes
    become layers that hold them. ``filled`` is called once the names are checked: it may put layers in place with their
    weights, and returns their names.
    """
    found = check_names(model, file, table, ignored)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    done = {f"{name}.weight" for name in filled()}
    stacks: dict[str, Tensor] = {}
    for slot in found:
        if done and done.issuperset(slot.ours):
            continue
        if pack and isinstance(file, GGUFFile) and _pack_slot(model, file, slot, shapes):
            continue
        if (pack or hold) and isinstance(file, QuantisedFolder) and _hold_slot(model, file, slot, pack=pack):
            continue
        # A difference from one is taken in float32: near one, bfloat16 has no digits for it
        read_as = torch.float32 if slot.row.offset else dtype
        tensor = _from_file(file.load(slot.theirs, read_as).to(device), slot.row, _head_dim(model)).to(dtype)
        parts = tensor.split([shapes[name][-2 if slot.expert is not None else 0] for name in slot.ours])
        for name, part in zip(slot.ours, parts, strict=True):
            if slot.expert is None:
                _assign(model, name, part)
                continue
            if name not in stacks:
                stacks[name] = torch.empty(shapes[name], dtype=dtype, device=device)
                _assign(model, name, stacks[name])
            stacks[name][slot.expert] = part


def _pack_slot(model: Network, file: GGUFFile, slot: Slot, shapes: dict[str, torch.Size]) -> bool:
    """Put a tensor's blocks into the layers they belong to; False where they must be read as numbers."""
    info, how = file.infos()[slot.theirs], slot.row
    plain = slot.expert is None and not how.transposed and not how.offset
    if not plain or info.type not in BLOCKS or not all(takes_blocks(model, name) for name in slot.ours):
        return False
    blocks = rows_from_file(file.raw(slot.theirs), how, model)
    parts = blocks.split([shapes[name][0] for name in slot.ours])
    for name, part in zip(slot.ours, parts, strict=True):
        put_blocks(model, name, info.type, info.shape[-1], part)
    return True


def _hold_slot(model: Network, file: QuantisedFolder, slot: Slot, *, pack: bool) -> bool:
    """Put a tensor's codes into the layers they belong to; False where they must be read as numbers."""
    parts = slot_codes(model, file, slot) if slot.expert is None else None
    if parts is None:
        return False
    done = [
        put_codes(model, name, part, pack=pack, inputs=file.layout.inputs)
        for name, part in zip(slot.ours, parts, strict=True)
    ]
    return all(done)


def slot_codes(model: Network, file: QuantisedFolder, slot: Slot) -> list[Codes] | None:
    """The codes of the parameters of ours that a tensor of a folder holds, in the order of the slot; None where it is
    not quantised, or stored transposed."""
    codes = None if slot.row.transposed else file.codes(slot.theirs)
    if codes is None or len(slot.ours) == 1:
        return None if codes is None else [codes]
    return codes.split([model.get_parameter(name).shape[-2] for name in slot.ours])


def slot_parameters(model: Network, file: TensorFile, slot: Slot) -> list[Tensor]:
    """The parameters of ours that a tensor of a file holds, in float32, in the order of the slot."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters() if name in slot.ours}
    tensor = _from_file(file.load(slot.theirs, torch.float32), slot.row, _head_dim(model))
    return list(tensor.split([shapes[name][-2 if slot.expert is not None else 0] for name in slot.ours]))


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))


def check_plain(model: nn.Module) -> None:
    """ConfigError where a layer holds more or other than the file's weights: it would be left out of a file."""
    odd = [
        name
        for name, module in model.named_modules()
        if hasattr(module, "adapters") or (isinstance(module, LinearLayer) and type(module) is not Linear)
    ]
    if odd:
        raise ConfigError(
            f"{len(odd)} layers are quantised or carry adapters ({odd[0]}, …): merge them before the model is written"
        )


def file_shapes(model: Network, table: Table) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the tensors that :func:`file_tensors` gives."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return {slot.theirs: _shape_in_file(slot, shapes) for slot in slots(model, table)}


def file_tensors(model: Network, table: Table) -> Iterator[tuple[str, Tensor]]:
    """The model's weights under the file's names, as the file has them: the way back."""
    parameters = dict(model.named_parameters())
    for slot in slots(model, table):
        parts = [parameters[name].detach() for name in slot.ours]
        if slot.expert is not None:
            parts = [part[slot.expert] for part in parts]
        yield slot.theirs, file_tensor(model, slot, parts)


def file_tensor(model: Network, slot: Slot, parts: Sequence[Tensor]) -> Tensor:
    """One tensor as the file has it, from those of ours that it holds."""
    tensor = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
    return _to_file(tensor, slot.row, _head_dim(model))
