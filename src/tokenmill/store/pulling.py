"""Pull: ask a source what a model consists of, fetch what is not here, write the manifest last.

One process pulls a model at a time; a second one that wants the same waits and takes the result. Blobs that are here
already are hashed again, so that pulling a model also mends it. What tokenmill could not use is refused before it is
downloaded. A catalog name goes through its sources until one delivers the pinned bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

from tokenmill.core.errors import DigestError, NetworkError, NotFoundError, StoreError, TokenmillError
from tokenmill.store import catalog
from tokenmill.store import manifest as m
from tokenmill.store.blobs import BlobStore, hash_file
from tokenmill.store.commit import store_manifest
from tokenmill.store.library import Library
from tokenmill.store.manifest import Layer, Manifest
from tokenmill.store.names import ModelName, Reference, check_file_name, parse_reference
from tokenmill.store.progress import Progress

if TYPE_CHECKING:
    from tokenmill.store.sources.base import Plan, RemoteFile


class Sources(Protocol):
    """What `tokenmill.store.sources` provides; a test hands in its own."""

    def plan(self, reference: Reference, *, progress: Progress) -> Plan:
        """Ask the source what to fetch."""

    def fetch(self, file: RemoteFile, blobs: BlobStore, progress: Progress) -> tuple[str, int]:
        """Fetch one file into the blobs: (digest, bytes)."""

    def upload(
        self, destination: Reference, manifest: Manifest, path_of: Callable[[Layer], Path], *, progress: Progress
    ) -> None:
        """Push a model; `path_of` gives the file of a layer."""


def pull(library: Library, sources: Sources, reference: Reference, progress: Progress) -> ModelName:
    """Bring the model that `reference` names into the store; gives the name it is stored under."""
    entry = catalog.find(reference.name) if reference.kind == "name" else None
    name = entry.name if entry else reference.name
    name = library.find(name) or name
    before = _state(library, name)
    waits: list[bool] = []

    def on_wait() -> None:
        waits.append(True)
        progress("waiting for another process that pulls this model")

    with library.blobs.lock(f"pull:{name}".casefold(), on_wait):
        if not waits or _state(library, name) in (before, None):
            if entry:
                _pull_entry(library, sources, entry, name, progress)
            else:
                store_manifest(library, name, lambda: _fetch_all(library.blobs, sources, reference, progress))
    progress("success")
    return name


def _state(library: Library, name: ModelName) -> tuple[int, int] | None:
    """Something that changes whenever the manifest is written again, also with the same content."""
    try:
        state = library.manifest_path(name).stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns


def _fetch_all(blobs: BlobStore, sources: Sources, reference: Reference, progress: Progress) -> bytes:
    with sources.plan(reference, progress=progress) as plan:
        _refuse_unusable(plan)
        files = [(file, *_fetch(blobs, sources, file, progress)) for file in plan.files]
    progress("writing manifest")
    if plan.manifest:
        return _registry_manifest(plan)
    # only a name is taken over from the source: other annotations, such as a path to use in place, are ours alone
    layers = [
        Layer(file.media_type, digest, size, {m.TITLE: check_file_name(file.name)} if file.media_type == m.FILE else {})
        for file, digest, size in files
    ]
    notes = {m.SOURCE: plan.source, m.REVISION: plan.revision}
    if reference.kind in ("hf", "pypi", "url"):
        notes[m.NAME] = reference.text
    return Manifest(config_layer(blobs, layers), tuple(layers), notes).to_bytes()


def _registry_manifest(plan: Plan) -> bytes:
    """A registry's manifest as it is, so that the model's ID is the same here and in Ollama.

    One that carries our own annotations (it was pushed from a tokenmill) is rewritten with the harmless ones only: a
    stranger's manifest must not name files on this machine.
    """
    manifest = m.parse_manifest(plan.manifest, plan.source)
    noted = {key for layer in manifest.all_layers for key in layer.annotations} | manifest.annotations.keys()
    if not any(key.startswith(m.OUR_PREFIX) for key in noted):
        return plan.manifest
    harmless = (m.TITLE, m.ADAPTER_NUMBER)
    layers = [
        replace(layer, annotations={key: note for key, note in layer.annotations.items() if key in harmless})
        for layer in manifest.layers
    ]
    config = replace(manifest.config, annotations={})
    return Manifest(config, tuple(layers), {m.SOURCE: plan.source, m.REVISION: plan.revision}).to_bytes()


def _fetch(blobs: BlobStore, sources: Sources, file: RemoteFile, progress: Progress) -> tuple[str, int]:
    if file.digest:
        _drop_if_broken(blobs, file.digest, progress)
    return sources.fetch(file, blobs, progress)


def _drop_if_broken(blobs: BlobStore, digest: str, progress: Progress) -> None:
    if blobs.has(digest) and not blobs.verify(digest, progress):
        progress(f"{digest[7:19]} is damaged and is fetched again", digest)
        blobs.remove(digest)


def _refuse_unusable(plan: Plan) -> None:
    planned = tuple(Layer(file.media_type, "", file.size or 0) for file in plan.files if file.media_type != m.CONFIG)
    if reasons := Manifest(Layer(m.CONFIG, "", 0), planned).unsupported():
        raise StoreError(f"{plan.source} cannot be used: it has {'; '.join(reasons)}. Nothing was downloaded")


def _pull_entry(library: Library, sources: Sources, entry: catalog.Entry, name: ModelName, progress: Progress) -> None:
    blobs = library.blobs
    _drop_if_broken(blobs, entry.digest, progress)
    kept = library.read(name)[0].annotations if library.find(name) else {}

    def build() -> bytes:
        source = kept
        if not blobs.has(entry.digest, entry.size):
            source = _fetch_pinned(blobs, sources, entry, progress)
        layers = [
            Layer(m.MODEL, entry.digest, entry.size),
            text_layer(blobs, m.PARAMS, json.dumps(dict(entry.parameters))),
            text_layer(blobs, m.LICENSE, entry.license_text),
        ]
        progress("writing manifest")
        source = source or {m.SOURCE: "already on this machine"}
        return Manifest(config_layer(blobs, layers), tuple(layers), source).to_bytes()

    store_manifest(library, name, build)


def _fetch_pinned(blobs: BlobStore, sources: Sources, entry: catalog.Entry, progress: Progress) -> Mapping[str, str]:
    """Fetch the entry's file from the first source that has it; gives the provenance."""
    failures: list[str] = []
    for origin in entry.origins:
        progress(f"pulling {entry.name} from {origin.reference}")
        try:
            with sources.plan(parse_reference(origin.reference), progress=progress) as plan:
                digest, _ = sources.fetch(_pinned_file(plan, entry, origin), blobs, progress)
            if digest != entry.digest:
                raise DigestError(f"its file has the digest {digest}, not the pinned {entry.digest}")
        except TokenmillError as error:
            failures.append(f"{origin.reference}: {str(error).removeprefix(f'{origin.reference}: ')}")
            progress(f"passing over {failures[-1]}")
            continue
        return {m.SOURCE: plan.source, m.REVISION: plan.revision}
    listed = "\n  ".join(failures)
    raise NetworkError(f"no source delivers {entry.name}; check the connection and try again:\n  {listed}")


def _pinned_file(plan: Plan, entry: catalog.Entry, origin: catalog.Origin) -> RemoteFile:
    """The file to fetch, with the pinned digest in it; a source that offers another is passed over at once."""
    models = [file for file in plan.files if file.media_type == m.MODEL]
    if len(models) != 1:
        raise NotFoundError(f"expected one model file, found {len(models)}")
    file = models[0]
    if file.digest not in (None, entry.digest):
        raise DigestError(f"it offers a file with {file.digest}, but {entry.digest} is pinned")
    if file.member and origin.archive_digest:
        found = hash_file(Path(unquote(urlsplit(file.url).path)))[0]
        if found != origin.archive_digest:
            raise DigestError(f"the archive has {found}, but {origin.archive_digest} is pinned")
    return replace(file, sha256=entry.digest.removeprefix("sha256:"))


def text_layer(blobs: BlobStore, media_type: str, text: str) -> Layer:
    """A layer made of a short text."""
    data = text.encode()
    return Layer(media_type, blobs.add_bytes(data), len(data))


def config_layer(blobs: BlobStore, layers: list[Layer], requires: str | None = None) -> Layer:
    """The config blob: what Ollama reads of it, as far as it is known without opening the model."""
    gguf = any(layer.media_type == m.MODEL or layer.title.endswith(".gguf") for layer in layers)
    plain: dict[str, Any] = {
        "model_format": "gguf" if gguf else "safetensors",
        **({"requires": requires} if requires else {}),
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
    }
    return text_layer(blobs, m.CONFIG, json.dumps(plain, separators=(",", ":")))
