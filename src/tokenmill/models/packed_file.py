"""The packed form of a model on disk, so that a second start maps it instead of packing again.

One file a model under ``TOKENMILL_HOME/cache/packed``, named after what it was made from: the model's files with their
sizes and times, our version, and the layout, one for all instruction sets (``native/src/formats.h``). Mapped memory is
shared by all processes that serve the model, and costs no more than the file. A file that does not fit is not used; it
is written anew, and those whose model is gone are removed. Small models are not kept: packing them takes no time.

Layout: 8 bytes with the length of the header, the header (JSON), then each matrix at the next multiple of 4,096 bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tokenmill.core.errors import FormatError
from tokenmill.core.log import get_logger
from tokenmill.core.paths import atomic_write
from tokenmill.core.version import __version__
from tokenmill.formats.gguf import GGUFFile
from tokenmill.formats.tensors import TensorFile, map_file
from tokenmill.models.packing import replace_layer
from tokenmill.nn.packed import PackedEmbedding, PackedLinear
from tokenmill.ops.packed import Packed
from tokenmill.store import derived

log = get_logger(__name__)
LAYOUT = 1
"""Counts the changes of ``native/src/formats.h`` that make older files useless."""
LEAST_BYTES = 32 << 20
_PAGE = 4096


class PackedFile:
    """The packed form of one model; ``table``: how its weights are named, for a form made by another one is useless."""

    def __init__(self, file: TensorFile, table: object) -> None:
        files = file.files if isinstance(file, GGUFFile) else _of_folder(Path(file.path))
        self.sources = [derived.state(path.resolve()) for path in files]
        key = json.dumps([LAYOUT, __version__, repr(table), self.sources])
        self.path = derived.folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.packed"

    def fill(self, network: nn.Module) -> set[str]:
        """Put the layers of this form into a network that has plain ones; returns their names."""
        if not self.path.is_file():
            return set()
        try:
            layers = dict(_read(self.path, network))
        except (FormatError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is not used and made anew: %s", self.path, error)
            with suppress(OSError):
                self.path.unlink()
            return set()
        for name, packed in layers.items():
            replace_layer(network, name, packed)
        return set(layers)

    def save_soon(self, network: nn.Module) -> threading.Thread | None:
        """Write the packed layers of a network down in the background; the process does not end before that is done."""
        kinds = (PackedLinear, PackedEmbedding)
        layers = {name: module.packed for name, module in network.named_modules() if isinstance(module, kinds)}
        if self.path.exists() or sum(packed.nbytes for packed in layers.values()) < LEAST_BYTES:
            return None
        writer = threading.Thread(target=_save, args=(self.path, layers, self.sources), name="packed form")
        writer.start()
        return writer


def _of_folder(path: Path) -> list[Path]:
    """The configuration counts too: it says which rows belong where."""
    return sorted([*path.glob("*.safetensors"), *path.glob("config.json")])


def _read(path: Path, network: nn.Module) -> Iterator[tuple[str, Packed]]:
    buffer = map_file(path)
    size = int.from_bytes(buffer[:8], "little")
    if size > len(buffer) - 8:
        raise FormatError(path, "header", "is cut off")
    header = json.loads(buffer[8 : 8 + size])
    data = torch.frombuffer(buffer, dtype=torch.uint8)[_pages(8 + size) :]
    for one in header["layers"]:
        shape = network.get_parameter(f"{one['name']}.weight").shape
        memory = data[one["start"] : one["start"] + one["size"]]
        yield one["name"], Packed(one["kind"], *shape, group_shift=one["shift"], memory=memory)


def _save(path: Path, layers: dict[str, Packed], sources: list[list[Any]]) -> None:
    """A cache that cannot be written is no reason to fail."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        derived.remove_useless()
        needed = sum(packed.nbytes for packed in layers.values())
        if shutil.disk_usage(path.parent).free < 4 * needed:
            log.info("the packed form is not kept: the disk is nearly full")
            return
        _write(path, layers, sources)
    except OSError as error:
        log.warning("the packed form could not be kept: %s", error)


def _write(path: Path, layers: dict[str, Packed], sources: list[list[Any]]) -> None:
    entries, start = [], 0
    for name, packed in layers.items():
        entries.append(
            {"name": name, "kind": packed.kind, "shift": packed.group_shift, "start": start, "size": packed.nbytes}
        )
        start += _pages(packed.nbytes)
    header = json.dumps({"sources": sources, "layers": entries}).encode()
    with atomic_write(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for packed in layers.values():
            file.seek(_pages(file.tell()))
            file.write(packed.memory.numpy().data)


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
