"""The codes of a quantised folder for the matrices of a GGUF file of the same model: nothing is rounded twice."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.formats.codes import Codes
from tokenmill.formats.gguf.from_codes import blocks_of, nearest_type
from tokenmill.formats.quantised_folder import QuantisedFolder
from tokenmill.models.load import Model, names_of
from tokenmill.models.weights import Slot, rows_to_file, slot_codes, slots


class FolderCodes:
    """What a folder has for the tensors of a GGUF file, which names, fuses and orders them in its own way."""

    def __init__(self, model: Model, file: QuantisedFolder) -> None:
        self._network, self._file = model.network, file
        self._places: dict[str, list[tuple[Slot, int]]] = {}
        """Where each parameter of ours lies in the folder; a stack of experts in as many places."""
        for slot in slots(model.network, names_of(file, model.family)[0]):
            for place, name in enumerate(slot.ours):
                self._places.setdefault(name, []).append((slot, place))

    def type(self, slot: Slot) -> str | None:
        """The type nearest to all codes of a tensor; None for one that is not quantised, or has no such type."""
        kinds = {nearest_type(codes) for codes in self._of(slot)}
        return "Q4_1" if kinds == {"Q4_0", "Q4_1"} else kinds.pop() if len(kinds) == 1 else None

    def blocks(self, slot: Slot, type: str) -> Tensor | None:
        """A tensor's bytes in this type, as the file orders its rows; None where they have to be encoded."""
        parts = []
        for codes in self._of(slot):
            if (part := blocks_of(codes, type)) is None:
                return None
            parts.append(part)
        if not parts:
            return None
        stacked = self._places[slot.ours[0]][0][0].expert is not None
        return torch.stack(parts) if stacked else rows_to_file(torch.cat(parts), slot.row, self._network)

    def _of(self, slot: Slot) -> list[Codes]:
        """The codes of a tensor of the GGUF file, part by part; none where some part has none."""
        found: list[Codes] = []
        for name in slot.ours:
            for theirs, place in self._places.get(name, ()):
                parts = slot_codes(self._network, self._file, theirs)
                if parts is None:
                    return []
                found.append(parts[place])
        return found
