"""Create: a model out of a Modelfile. Files that are on this machine already are used in place, not copied.

A linked file is hashed once, when it is linked; afterwards its size and modification time stand for its content, and a
file that changed is refused when the model is used. The parts that a Modelfile sets replace those of the model it
starts from (template, system text, conversation) or are added to them (parameters one by one, adapters, licenses).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tokenmill.core.errors import FormatError, MissingFileError, NotFoundError, StoreError
from tokenmill.store import manifest as m
from tokenmill.store import parameters
from tokenmill.store.blobs import hash_file
from tokenmill.store.foreign import folder_files, missing_shards
from tokenmill.store.library import Library, ModelFiles, is_gguf
from tokenmill.store.manifest import Layer, Manifest
from tokenmill.store.modelfile import Modelfile
from tokenmill.store.progress import Progress
from tokenmill.store.pulling import config_layer, text_layer
from tokenmill.store.select import select_files

_ADAPTER_NAMES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Base:
    """What FROM names: the layers of its weights and adapters, and the settings that it brings."""

    layers: list[Layer]
    files: ModelFiles


def base_from_files(library: Library, files: ModelFiles, progress: Progress) -> Base:
    """A model that is somewhere on this machine but not in our store, linked in place."""
    if files.path.is_dir():
        folder, chosen = files.path, select_files(folder_files(files.path), "", str(files.path))
    else:
        folder, chosen = files.path.parent, split_names(files.path)
        if not is_gguf(files.path):
            raise FormatError(files.path, "first 4 bytes", "not a GGUF file; FROM takes GGUF or a Hugging Face folder")
    if missing := missing_shards(folder, chosen):
        raise NotFoundError(f"{folder}: the model is not complete, it lacks {', '.join(missing[:5])}")
    lone = len(chosen) == 1
    layers = [
        link_layer(library, folder / name, m.MODEL if lone else m.FILE, {} if lone else {m.TITLE: name}, progress)
        for name in chosen
    ]
    for number, adapter in enumerate(files.adapters):
        layers += adapter_layers(library, adapter, number, progress)
    return Base(layers, files)


def build_manifest(library: Library, base: Base, modelfile: Modelfile, source: str, progress: Progress) -> bytes:
    """The manifest of a Modelfile on top of its base; keeps the small blobs as it goes."""
    blobs = library.blobs
    settings = (m.TEMPLATE, m.SYSTEM, m.PARAMS, m.MESSAGES, m.LICENSE)
    layers = [layer for layer in base.layers if layer.media_type not in settings]
    numbers = [layer.annotations.get(m.ADAPTER_NUMBER, "") for layer in layers]
    for number, adapter in enumerate(modelfile.adapters, start=len(set(numbers) - {""})):
        layers += adapter_layers(library, Path(adapter), number, progress)

    template = modelfile.template if modelfile.template is not None else base.files.template
    system = modelfile.system if modelfile.system is not None else base.files.system
    merged = parameters.merge(base.files.parameters, modelfile.parameters)
    messages = modelfile.messages or base.files.messages
    if template:
        layers.append(text_layer(blobs, m.TEMPLATE, template))
    if system:
        layers.append(text_layer(blobs, m.SYSTEM, system))
    if merged:
        layers.append(text_layer(blobs, m.PARAMS, json.dumps(merged)))
    if messages:
        layers.append(text_layer(blobs, m.MESSAGES, json.dumps(messages)))
    for text in dict.fromkeys([*base.files.licenses, *modelfile.licenses]):
        layers.append(text_layer(blobs, m.LICENSE, text))
    progress("writing manifest")
    config = config_layer(blobs, layers, modelfile.requires or base.files.requires)
    return Manifest(config, tuple(layers), {m.SOURCE: source}).to_bytes()


def adapter_layers(library: Library, path: Path, number: int, progress: Progress) -> list[Layer]:
    """The layers of a LoRA adapter: a GGUF file, or a PEFT folder."""
    if path.is_file():
        if not is_gguf(path):
            raise FormatError(path, "first 4 bytes", "not a GGUF file; ADAPTER takes GGUF or a PEFT folder")
        return [link_layer(library, path, m.ADAPTER, {}, progress)]
    if not path.exists():
        raise MissingFileError(f"adapter {path}: no such file or folder")
    missing = [name for name in _ADAPTER_NAMES if not (path / name).is_file()]
    if missing:
        raise MissingFileError(
            f"adapter {path}: not a GGUF file, and as a PEFT folder it lacks {' and '.join(missing)}"
        )
    note = {m.ADAPTER_NUMBER: str(number)}
    return [
        link_layer(library, path / name, m.ADAPTER_FILE, {m.TITLE: name, **note}, progress) for name in _ADAPTER_NAMES
    ]


def link_layer(library: Library, path: Path, media_type: str, notes: dict[str, str], progress: Progress) -> Layer:
    """A layer for a file used in place; one of our own blobs is named as the blob that it is."""
    path = path.absolute()
    if path.is_relative_to(library.root / "views") and path.is_symlink():  # a view goes with its model; its files stay
        path = path.readlink()
    real = path.resolve()
    if real.parent == library.blobs.folder.resolve() and real.name.startswith("sha256-"):
        return Layer(media_type, real.name.replace("-", ":", 1), real.stat().st_size, notes)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    if any(ord(char) < 32 for char in str(path)) or len(str(path)) > 4000:
        raise StoreError(f"{str(path)!r:.200}: a path with control characters, or too long, cannot be kept; rename it")
    before = path.stat()
    digest, size = hash_file(path, progress)
    if (before.st_size, before.st_mtime_ns) != (size, path.stat().st_mtime_ns):
        raise StoreError(f"{path} changed while it was read; wait until it is written and try again")
    return Layer(media_type, digest, size, {**notes, m.LINK_PATH: str(path), m.LINK_MTIME: str(before.st_mtime_ns)})


def split_names(path: Path) -> list[str]:
    """Names of all splits of the GGUF model that `path` is the first file of; `path`'s own name if it is not split."""
    if "-00001-of-" not in path.name:
        return [path.name]
    return select_files([entry.name for entry in path.parent.iterdir()], path.name, str(path.parent))
