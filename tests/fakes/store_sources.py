"""A source of models without a network. Also run as a program, for two processes that pull at once."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tokenmill.core.errors import NetworkError, NotFoundError
from tokenmill.store import Store
from tokenmill.store.blobs import BlobStore
from tokenmill.store.manifest import MODEL, Layer, Manifest
from tokenmill.store.names import Reference
from tokenmill.store.progress import Progress
from tokenmill.store.sources.base import Plan, RemoteFile

GGUF = b"GGUF" + bytes(range(256)) * 4


def hex_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class FakeSources:
    """Serves `models`: reference text -> {file name: (media type, bytes)}. Records what was asked of it."""

    models: dict[str, dict[str, tuple[str, bytes]]] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    promise: bool = True
    before_fetch: Callable[[RemoteFile], None] = lambda file: None
    planned: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    uploaded: list[tuple[str, Manifest, list[bytes]]] = field(default_factory=list)

    def plan(self, reference: Reference, *, progress: Progress) -> Plan:
        self.planned.append(reference.text)
        if reference.text not in self.models:
            raise NotFoundError(f"{reference.text}: the fake does not have it")
        files = [
            RemoteFile(name, f"fake:{reference.text}#{name}", len(data), hex_of(data) if self.promise else None, kind)
            for name, (kind, data) in self.models[reference.text].items()
        ]
        return Plan(reference.text, "r1", files, manifest=self.manifests.get(reference.text, b""))

    def fetch(self, file: RemoteFile, blobs: BlobStore, progress: Progress) -> tuple[str, int]:
        with blobs.lock(file.url):
            if file.digest and blobs.has(file.digest, file.size):
                return file.digest, file.size or 0
            self.before_fetch(file)
            self.fetched.append(file.name)
            model, _, name = file.url.removeprefix("fake:").partition("#")
            data = self.models[model][name][1]
            partial = blobs.partial_path(file.url)
            partial.write_bytes(data)
            digest = file.digest or f"sha256:{hex_of(data)}"
            blobs.adopt(partial, digest, progress)
        return digest, len(data)

    def upload(
        self, destination: Reference, manifest: Manifest, path_of: Callable[[Layer], Path], *, progress: Progress
    ) -> None:
        contents = [path_of(layer).read_bytes() for layer in manifest.all_layers]
        self.uploaded.append((destination.text, manifest, contents))


class Unreachable(FakeSources):
    """No source answers."""

    def plan(self, reference: Reference, *, progress: Progress) -> Plan:
        self.planned.append(reference.text)
        raise NetworkError(f"{reference.text}: connection refused")


def one_gguf(data: bytes = GGUF) -> dict[str, tuple[str, bytes]]:
    return {"model.gguf": (MODEL, data)}


def main(root: str, log: str) -> None:
    """Pull a model whose download takes a while; write one line to `log` for each download and each result."""

    def slow(file: RemoteFile) -> None:
        with Path(log).open("a") as out:
            out.write(f"download {file.name}\n")
        time.sleep(0.5)

    sources = FakeSources({"ollama:big:latest": one_gguf()}, before_fetch=slow)
    print("ready", flush=True)
    sys.stdin.readline()
    said: list[str] = []
    files = Store(Path(root), sources=sources).pull("big", lambda status, *rest: said.append(status))
    waited = any("waiting" in status for status in said)
    print(json.dumps({"digest": files.digest, "waited": waited, "asked": len(sources.planned)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
