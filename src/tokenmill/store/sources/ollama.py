"""Models on a registry that speaks Ollama's protocol: Docker's registry API, version 2, with Ollama's media types.

Plain names come from ``registry.ollama.ai``, or from the registry that ``TOKENMILL_OLLAMA_REGISTRY`` names; a name may
carry its own host. The manifest is kept byte for byte, so that a model has the same ID here as in Ollama. Every blob
is verified against its digest.

Source: https://distribution.github.io/distribution/spec/api/ and server/upload.go of Ollama.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import httpx

from tokenmill.core.errors import NetworkError, NotFoundError, StoreError
from tokenmill.store.manifest import (
    LINK_MTIME,
    LINK_PATH,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Layer,
    Manifest,
    parse_manifest,
)
from tokenmill.store.names import DEFAULT_HOST, ModelName, Reference
from tokenmill.store.progress import Progress
from tokenmill.store.sources.base import Plan, RemoteFile
from tokenmill.store.transport import Client, Reply, Throttle, shown

REGISTRY = "TOKENMILL_OLLAMA_REGISTRY"
_CHUNK = 64 << 20  # bytes of one PATCH: what is sent again when a connection is cut
_BLOCK = 1 << 20
_LOOPBACK = ("localhost", "127.", "[::1]")


def registry_url(name: ModelName) -> str:
    """The address of `name`'s repository. Registries on this machine speak plain http, as Docker has it."""
    if name.host == DEFAULT_HOST:
        base = os.environ.get(REGISTRY) or f"https://{DEFAULT_HOST}"
    else:
        base = f"http://{name.host}" if name.host.startswith(_LOOPBACK) else f"https://{name.host}"
    return f"{base.rstrip('/')}/v2/{name.namespace}/{name.model}"


def plan(reference: Reference, client: Client, progress: Progress) -> Plan:
    """Ask the registry for the manifest. Raises NotFoundError, NetworkError, FormatError (a broken manifest)."""
    progress("pulling manifest")
    base, name = registry_url(reference.name), reference.name
    url = f"{base}/manifests/{name.tag}"
    try:
        reply = client.read("GET", url, headers={"Accept": MANIFEST}, limit=MAX_MANIFEST_BYTES)
    except NotFoundError as error:
        raise NotFoundError(f"{name}: the registry {httpx.URL(base).host} has no such model or tag") from error
    manifest = parse_manifest(reply.body, url)
    distinct = {layer.digest: layer for layer in reversed(manifest.all_layers)}
    files = [_remote(base, layer) for layer in reversed(distinct.values())]
    return Plan(str(reference), name.tag, files, manifest=reply.body)


def push(
    destination: Reference, manifest: Manifest, path_of: Callable[[Layer], Path], client: Client, progress: Progress
) -> None:
    """Upload what the registry lacks, then the manifest. Raises NetworkError, also for a registry that says no."""
    base, name = registry_url(destination.name), destination.name
    for layer in manifest.all_layers:
        _push_blob(base, layer, path_of(layer), client, progress)
    progress("pushing manifest")
    data = _public(manifest).to_bytes()
    client.read("PUT", f"{base}/manifests/{name.tag}", headers={"Content-Type": MANIFEST}, content=data, follow=False)


def _remote(base: str, layer: Layer) -> RemoteFile:
    name = layer.title or layer.digest.replace(":", "-")
    sha256 = layer.digest.removeprefix("sha256:")
    return RemoteFile(name, f"{base}/blobs/{layer.digest}", layer.size, sha256, layer.media_type)


def _push_blob(base: str, layer: Layer, path: Path, client: Client, progress: Progress) -> None:
    status = f"pushing {layer.digest[7:19]}"
    there = client.read("HEAD", f"{base}/blobs/{layer.digest}", accept=frozenset({404}))
    if there.status != 404:
        progress(status, layer.digest, layer.size, layer.size)
        return
    if path.stat().st_size != layer.size:
        raise StoreError(f"{path}: {path.stat().st_size} bytes where the manifest says {layer.size}; create it again")
    session = client.read("POST", f"{base}/blobs/uploads/", content=b"", follow=False)
    target = _upload_location(session)
    told = Throttle(lambda completed, total: progress(status, layer.digest, total, completed))
    with path.open("rb") as file:
        for start in range(0, layer.size, _CHUNK):
            length = min(_CHUNK, layer.size - start)
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(length),
                "Content-Range": f"{start}-{start + length - 1}",
            }
            body = partial(_slices, file, start, length, layer.size, told)
            target = _upload_location(client.read("PATCH", target, headers=headers, content=body, follow=False))
    end = str(httpx.URL(target).copy_add_param("digest", layer.digest))
    client.read("PUT", end, headers={"Content-Type": "application/octet-stream"}, content=b"", follow=False)


def _slices(file: BinaryIO, start: int, length: int, total: int, told: Throttle) -> Iterator[bytes]:
    """`length` bytes of `file` from `start`, for one attempt at sending them."""
    file.seek(start)
    end = start + length
    while start < end and (block := file.read(min(_BLOCK, end - start))):
        yield block
        start += len(block)
        told(start, total)


def _upload_location(reply: Reply) -> str:
    """Where the next part of an upload goes: the registry names it anew after each part."""
    location = reply.headers.get("docker-upload-location") or reply.headers.get("location")
    if not location:
        raise NetworkError(f"{shown(reply.url)}: the registry names no address to upload to")
    return str(httpx.URL(reply.url).join(location))


def _public(manifest: Manifest) -> Manifest:
    """The manifest without what concerns this machine only: paths of files used in place."""
    private = (LINK_PATH, LINK_MTIME)
    layers = [
        replace(layer, annotations={key: note for key, note in layer.annotations.items() if key not in private})
        for layer in manifest.layers
    ]
    return replace(manifest, layers=tuple(layers))
