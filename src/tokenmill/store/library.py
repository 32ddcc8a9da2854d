"""Reads the models of one folder in Ollama's layout: tokenmill's own store, or Ollama's, in place.

``<root>/manifests/<host>/<namespace>/<model>/<tag>`` names blobs of ``<root>/blobs``. A model of several files is shown
to the rest of tokenmill as a folder of symbolic links, ``<root>/views/<manifest digest>``, made when it is first used.

Nothing here writes but the views, and a foreign library makes none. Refuses: manifests reached through links that lead
out of the store, blobs of another size than promised, linked files that changed since, layers that would change the
answers and that tokenmill cannot use. Big blobs are hashed when they arrive, not each time they are used.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from tokenmill.core.errors import ConfigError, FormatError, NotFoundError, StoreError
from tokenmill.core.log import get_logger, info_once
from tokenmill.store import manifest as m
from tokenmill.store import parameters
from tokenmill.store.blobs import BlobStore
from tokenmill.store.manifest import Layer, Manifest
from tokenmill.store.names import ModelName, parse_reference

MAX_TEXT_BYTES = 4 << 20
_log = get_logger(__name__)


@dataclass(frozen=True)
class ModelFiles:
    """All that a name stands for, resolved to files on this machine."""

    name: str
    path: Path
    """A GGUF file (the first split; a blob's name has no suffix) or a Hugging Face folder."""
    digest: str = ""
    """Hex sha256 of the manifest; empty for a file or folder that is in no store."""
    size: int = 0
    """Bytes."""
    source: str = ""
    """Where it came from, for the person."""
    template: str | None = None
    """As the manifest has it: a Go template in models made for Ollama. None: use the one in the model's own files."""
    system: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)
    licenses: list[str] = field(default_factory=list)
    adapters: list[Path] = field(default_factory=list)
    """GGUF files or PEFT folders."""
    modified: datetime = field(default_factory=lambda: datetime.now(UTC))
    requires: str | None = None
    """The Ollama version that the model's author asks for."""

    def weights(self) -> Path:
        """``path``, for whoever reads the weights alone. ConfigError where adapters belong to them: without these it
        would be another model."""
        if self.adapters:
            raise ConfigError(
                f"{self.name} is a model with {len(self.adapters)} adapter(s) (ADAPTER in its Modelfile), and here "
                f"only weights are read: fold them in first (tokenmill export hf {self.name} --out DIR)"
            )
        return self.path


class Library:
    """The models below `root`. `foreign`: the folder belongs to another program, so nothing may be written into it."""

    def __init__(self, root: Path, *, foreign: bool = False) -> None:
        self.root, self.foreign = root, foreign
        self.blobs = BlobStore(root)

    def manifest_path(self, name: ModelName) -> Path:
        """Where the manifest is or would be, proven to be inside the store."""
        folder = self.root / "manifests"
        path = folder.joinpath(*name.parts)
        if not path.resolve().is_relative_to(folder.resolve()):
            raise StoreError(f"{path} leads out of the store through a symbolic link; remove the link")
        return path

    def find(self, name: ModelName) -> ModelName | None:
        """The stored name equal to `name` up to case (names are told apart as Ollama does), or None."""
        if self.manifest_path(name).is_file():
            return name
        found: list[str] = []
        for part in name.parts:
            folder = self.root.joinpath("manifests", *found)
            same = [entry for entry in _entries(folder) if entry.casefold() == part.casefold()]
            if not same:
                return None
            found.append(part if part in same else same[0])
        stored = ModelName(*found)
        return stored if self.manifest_path(stored).is_file() else None

    def names(self) -> Iterator[ModelName]:
        """Every stored name; entries that are no valid name are none of ours and are skipped."""
        top = self.root / "manifests"
        for host in _entries(top):
            for namespace in _entries(top / host):
                for model in _entries(top / host / namespace):
                    for tag in _entries(top / host / namespace / model):
                        try:
                            name = ModelName(host, namespace, model, tag)
                            if self.manifest_path(name).is_file():
                                yield name
                        except StoreError:
                            continue

    def read(self, name: ModelName) -> tuple[Manifest, bytes]:
        """The manifest of a stored name and its bytes. Raises NotFoundError or FormatError."""
        path = self.manifest_path(name)
        try:
            with path.open("rb") as file:
                data = file.read(m.MAX_MANIFEST_BYTES + 1)
        except OSError as error:
            raise NotFoundError(f"model {str(name)!r} cannot be read: {error}") from None
        manifest = m.parse_manifest(data, path)
        ours = [layer for layer in manifest.all_layers if layer.linked or layer.media_type in (m.FILE, m.ADAPTER_FILE)]
        if self.foreign and ours:
            problem = "made for tokenmill's own store; another program's store must not hand out links"
            raise FormatError(path, ours[0].media_type, problem)
        return manifest, data

    def files(self, name: ModelName, *, use: bool = True) -> ModelFiles:
        """Resolve a stored name. With `use`, check every file, make the view, and refuse what cannot be used.

        Without it (for listings) only the small layers are read.
        """
        manifest, data = self.read(name)
        digest = m.manifest_digest(data)
        if use:
            self._check(name, manifest)
        view = self.root / "views" / digest
        if use and manifest.of(m.FILE, m.ADAPTER_FILE):
            self._make_view(view, manifest)
        template, system = self._text(manifest, m.TEMPLATE), self._text(manifest, m.SYSTEM)
        return ModelFiles(
            name=display_name(name, manifest),
            path=self._model_path(name, manifest, view),
            digest=digest,
            size=manifest.size,
            source=f"Ollama's store: {self.root}" if self.foreign else provenance(name, manifest),
            template=template,
            system=system,
            parameters=self._parameters(name, manifest, warn=use),
            messages=self._messages(manifest),
            licenses=[self._read_text(layer) for layer in manifest.of(m.LICENSE)],
            adapters=self._adapter_paths(manifest, view),
            modified=datetime.fromtimestamp(self.manifest_path(name).stat().st_mtime, UTC),
            requires=self._requires(manifest),
        )

    def layer_path(self, layer: Layer) -> Path:
        """The file with a layer's bytes: a blob, or the linked file. Raises StoreError if it is not as promised."""
        if layer.linked is None:
            path = self.blobs.path(layer.digest)
            if not self.blobs.has(layer.digest):
                raise NotFoundError(f"the blob {path} is missing; pull or create the model again")
            if path.stat().st_size != layer.size:
                raise StoreError(f"{path} has {path.stat().st_size} bytes, not the {layer.size} promised; pull again")
            return path
        path = layer.linked
        try:
            state = path.stat()
        except OSError:
            raise NotFoundError(
                f"{path}, which the model uses in place, is gone; put it back or create again"
            ) from None
        if state.st_size != layer.size or str(state.st_mtime_ns) != layer.annotations.get(m.LINK_MTIME):
            raise StoreError(f"{path}, which the model uses in place, changed since; create or pull the model again")
        return path

    def _check(self, name: ModelName, manifest: Manifest) -> None:
        if reasons := manifest.unsupported():
            raise StoreError(f"model {str(name)!r} cannot be used: it has {'; '.join(reasons)}")
        for layer in manifest.layers:
            path = self.layer_path(layer)
            if layer.media_type in m.SPEED_ONLY:
                info_once(_log, f"{name}: {layer.media_type} is not used; the answers stay the same without it")
            if layer.media_type == m.ADAPTER and not is_gguf(path):
                raise StoreError(
                    f"model {str(name)!r}: its adapter {path} is in no format that tokenmill reads (GGUF, PEFT)"
                )

    def _model_path(self, name: ModelName, manifest: Manifest, view: Path) -> Path:
        models, files = manifest.of(m.MODEL), manifest.of(m.FILE)
        if len(models) == 1 and not files:
            return models[0].linked or self.blobs.path(models[0].digest)
        if not files or models:
            raise StoreError(
                f"model {str(name)!r} cannot be used: {len(models)} model layers and {len(files)} files in it"
            )
        folder = view / "model"
        ggufs = sorted(layer.title for layer in files if layer.title.endswith(".gguf"))
        return folder / ggufs[0] if ggufs else folder

    def _adapter_paths(self, manifest: Manifest, view: Path) -> list[Path]:
        files = [layer.linked or self.blobs.path(layer.digest) for layer in manifest.of(m.ADAPTER)]
        numbers = dict.fromkeys(_adapter_folder(layer) for layer in manifest.of(m.ADAPTER_FILE))
        return files + [view / number for number in numbers]

    def _make_view(self, view: Path, manifest: Manifest) -> None:
        wanted = {}
        for layer in manifest.of(m.FILE, m.ADAPTER_FILE):
            folder = "model" if layer.media_type == m.FILE else _adapter_folder(layer)
            wanted[f"{folder}/{layer.title}"] = self.layer_path(layer).absolute()
        parents = {parent.as_posix() for title in wanted for parent in PurePosixPath(title).parents}
        if len(wanted) != len(manifest.of(m.FILE, m.ADAPTER_FILE)) or parents & wanted.keys():
            raise StoreError("two files of the model have the same name, or one is another's folder; create it again")
        if view.is_dir() and all(_links_to(view / title, path) for title, path in wanted.items()):
            return
        view.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=view.parent, prefix="."))
        try:
            for title, path in wanted.items():
                (fresh / title).parent.mkdir(parents=True, exist_ok=True)
                (fresh / title).symlink_to(path)
            if view.exists():  # made by an older run and damaged since
                shutil.rmtree(view)
            fresh.replace(view)
        except OSError:
            if not view.is_dir():  # else another process made the same view first
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _read_text(self, layer: Layer) -> str:
        data = self.blobs.read(layer.digest, MAX_TEXT_BYTES)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise FormatError(self.blobs.path(layer.digest), layer.media_type, f"not UTF-8: {error}") from None

    def _text(self, manifest: Manifest, media_type: str) -> str | None:
        layers = manifest.of(media_type)
        return self._read_text(layers[-1]) if layers else None

    def _json(self, layer: Layer) -> Any:
        return m.parse_json(self.blobs.read(layer.digest, MAX_TEXT_BYTES), self.blobs.path(layer.digest))

    def _parameters(self, name: ModelName, manifest: Manifest, *, warn: bool) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for layer in manifest.of(m.PARAMS):
            kept, warnings, problems = parameters.read_json(self._json(layer))
            for warning in warnings if warn else []:
                _log.warning("%s: %s", name, warning)
            if problems:
                raise FormatError(self.blobs.path(layer.digest), "parameters", "; ".join(problems))
            merged |= kept
        return merged

    def _messages(self, manifest: Manifest) -> list[dict[str, str]]:
        messages: list[dict[str, str]] = []
        for layer in manifest.of(m.MESSAGES):
            plain = self._json(layer)
            for message in plain if isinstance(plain, list) else [None]:
                role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (0, 0)
                if not isinstance(role, str) or not isinstance(content, str):
                    raise FormatError(self.blobs.path(layer.digest), "messages", "must be a list of role and content")
                messages.append({"role": role, "content": content})
        return messages

    def _requires(self, manifest: Manifest) -> str | None:
        if not self.blobs.has(manifest.config.digest):
            return None
        config = self._json(manifest.config)
        requires = config.get("requires") if isinstance(config, dict) else None
        return requires if isinstance(requires, str) and requires else None


def display_name(name: ModelName, manifest: Manifest) -> str:
    """What to call a stored model: ``hf:...`` if it was pulled so and that leads back here, else the model name."""
    called = manifest.annotations.get(m.NAME)
    if called:
        try:
            if parse_reference(called).name == name:
                return called
        except StoreError:
            pass
    return str(name)


def provenance(name: ModelName, manifest: Manifest) -> str:
    """Where a model of our own store came from. A manifest without a note is a registry's, byte for byte."""
    source = manifest.annotations.get(m.SOURCE) or f"ollama:{name}"
    revision = manifest.annotations.get(m.REVISION, "")
    return source if revision in source else f"{source} at {revision}"


def is_gguf(path: Path) -> bool:
    """Whether the file starts like a GGUF file."""
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _adapter_folder(layer: Layer) -> str:
    number = layer.annotations.get(m.ADAPTER_NUMBER, "0")
    return f"adapter-{int(number) if number.isdecimal() and len(number) < 4 else 0}"


def _links_to(link: Path, target: Path) -> bool:
    try:
        return os.readlink(link) == str(target)
    except OSError:
        return False


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
