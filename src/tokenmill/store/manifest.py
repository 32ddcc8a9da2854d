"""A model's manifest: which blobs it is made of, and what each of them is.

The format is Ollama's (an OCI image manifest, schema version 2): a config blob and layers, each with a media type, a
digest and a size. tokenmill adds, in ways that Ollama skips over:

- ``application/vnd.tokenmill.file``: one file of a model of several files, named by ``org.opencontainers.image.title``;
  ``application/vnd.tokenmill.adapter`` is the same for an adapter's files, with ``tokenmill.adapter`` as its number;
- a layer that is a file elsewhere on this machine, used in place: ``tokenmill.path`` and ``tokenmill.mtime`` (ns);
- on the manifest ``tokenmill.source`` and ``tokenmill.revision`` (provenance), ``tokenmill.name`` (what it is called).

Manifests come from registries and other programs, so each number and string is bounded. Refuses duplicate keys,
digests and file names outside their grammars, and anything of the wrong type.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenmill.core.errors import FormatError, StoreError
from tokenmill.store.names import check_digest, check_file_name

_OLLAMA = "application/vnd.ollama.image."
MODEL, ADAPTER = _OLLAMA + "model", _OLLAMA + "adapter"
TEMPLATE, SYSTEM, PARAMS = _OLLAMA + "template", _OLLAMA + "system", _OLLAMA + "params"
MESSAGES, LICENSE = _OLLAMA + "messages", _OLLAMA + "license"
FILE, ADAPTER_FILE = "application/vnd.tokenmill.file", "application/vnd.tokenmill.adapter"
CONFIG = "application/vnd.docker.container.image.v1+json"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

TITLE = "org.opencontainers.image.title"
OUR_PREFIX = "tokenmill."
LINK_PATH, LINK_MTIME, ADAPTER_NUMBER = "tokenmill.path", "tokenmill.mtime", "tokenmill.adapter"
SOURCE, REVISION, NAME = "tokenmill.source", "tokenmill.revision", "tokenmill.name"

SPEED_ONLY = frozenset({_OLLAMA + "draft"})
"""Layers that may be left unused because the answers stay the same."""
_KNOWN = {MODEL, ADAPTER, TEMPLATE, SYSTEM, PARAMS, MESSAGES, LICENSE, FILE, ADAPTER_FILE} | SPEED_ONLY
_REASONS = {
    _OLLAMA + "projector": "an image or audio projector, and tokenmill reads text only",
    _OLLAMA + "tensor": "one tensor a blob (Ollama's MLX models), a layout that tokenmill does not read",
    _OLLAMA + "embed": "embeddings of an Ollama before 0.1.30, which no program uses any more",
}

MAX_MANIFEST_BYTES = 4 << 20
_MAX_LAYERS = 10_000
_MAX_SIZE = 1 << 50
_MAX_STRING = 4096


@dataclass(frozen=True)
class Layer:
    """One blob of a model: what it is, its digest, its size in bytes, and notes about it."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The file's name inside the model; empty for layers that are no named file."""
        return self.annotations.get(TITLE, "")

    @property
    def linked(self) -> Path | None:
        """The file on this machine that is used in place of a blob."""
        path = self.annotations.get(LINK_PATH)
        return Path(path) if path else None

    def as_json(self) -> dict[str, Any]:
        """The descriptor as it stands in a manifest."""
        plain: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return plain | ({"annotations": dict(self.annotations)} if self.annotations else {})


@dataclass(frozen=True)
class Manifest:
    """A config blob, layers in order, and notes about the whole."""

    config: Layer
    layers: tuple[Layer, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)

    def of(self, *media_types: str) -> list[Layer]:
        """The layers of these media types, in order."""
        return [layer for layer in self.layers if layer.media_type in media_types]

    @property
    def all_layers(self) -> tuple[Layer, ...]:
        """Config and layers: all that must be present."""
        return (self.config, *self.layers)

    @property
    def size(self) -> int:
        """Bytes of all blobs, as Ollama's SIZE column counts."""
        return sum(layer.size for layer in self.all_layers)

    def unsupported(self) -> list[str]:
        """Why this model cannot be used as it is meant: one line for each kind of layer that would change answers."""
        kinds = dict.fromkeys(layer.media_type for layer in self.layers if layer.media_type not in _KNOWN)
        return [f"{kind} ({_REASONS.get(kind, 'a kind of layer that tokenmill does not know')})" for kind in kinds]

    def to_bytes(self) -> bytes:
        """The manifest file."""
        plain: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.config.as_json(),
            "layers": [layer.as_json() for layer in self.layers],
        }
        if self.annotations:
            plain["annotations"] = dict(self.annotations)
        return json.dumps(plain, separators=(",", ":")).encode()


def manifest_digest(data: bytes) -> str:
    """Hex sha256 of a manifest file: the model's ID."""
    return hashlib.sha256(data).hexdigest()


def parse_manifest(data: bytes, path: Path | str) -> Manifest:
    """Read a manifest; `path` is for messages. Raises FormatError that names the field."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise FormatError(path, "", f"a manifest of {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are accepted")
    try:
        plain = json.loads(data, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise FormatError(path, "", f"not a manifest in JSON: {error}") from None
    reader = _Reader(path)
    top = reader.mapping(plain, "manifest")
    version = top.get("schemaVersion")
    if version != 2 or isinstance(version, bool):
        raise FormatError(path, "schemaVersion", f"{version!r:.40}; only version 2 is known")
    layers = top.get("layers")
    if not isinstance(layers, list) or len(layers) > _MAX_LAYERS:
        raise FormatError(path, "layers", f"must be a list of at most {_MAX_LAYERS} layers")
    return Manifest(
        config=reader.layer(top.get("config"), "config"),
        layers=tuple(reader.layer(layer, f"layers[{i}]") for i, layer in enumerate(layers)),
        annotations=reader.annotations(top.get("annotations"), "annotations"),
    )


def parse_json(data: bytes, path: Path | str) -> Any:
    """Read a small JSON layer (params, messages, config). Raises FormatError."""
    try:
        return json.loads(data, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(path, "", f"not JSON: {error}") from None


class _Reader:
    """Turns untyped JSON into layers, naming the place of whatever is wrong."""

    def __init__(self, path: Path | str) -> None:
        self.path = path

    def mapping(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise FormatError(self.path, where, "must be a JSON object")
        return value

    def string(self, value: Any, where: str) -> str:
        if not isinstance(value, str) or len(value) > _MAX_STRING or any(ord(char) < 32 for char in value):
            raise FormatError(self.path, where, f"must be text of at most {_MAX_STRING} printable characters")
        return value

    def annotations(self, value: Any, where: str) -> dict[str, str]:
        if value is None:
            return {}
        return {
            self.string(key, where): self.string(note, f"{where}.{key:.80}")
            for key, note in self.mapping(value, where).items()
        }

    def layer(self, value: Any, where: str) -> Layer:
        plain = self.mapping(value, where)
        size = plain.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_SIZE:
            raise FormatError(self.path, f"{where}.size", f"{size!r:.40} is not a number of bytes up to {_MAX_SIZE}")
        media_type = self.string(plain.get("mediaType"), f"{where}.mediaType")
        annotations = self.annotations(plain.get("annotations"), f"{where}.annotations")
        try:
            digest = check_digest(self.string(plain.get("digest"), f"{where}.digest"))
            if media_type in (FILE, ADAPTER_FILE):
                check_file_name(annotations.get(TITLE, ""))
        except StoreError as error:
            raise FormatError(self.path, where, str(error)) from None
        return Layer(media_type, digest, size, annotations)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return plain


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")
