"""Push a model to the Hugging Face hub, in the shape in which the hub's other users expect one.

Weights and tokenizer keep their file names; a lone GGUF is named after the repository unless the destination names it.
Template, system prompt and parameters become the files ``template``, ``system`` and ``params``, which Ollama reads when
it pulls from the hub. Refuses what has no place there (adapters, example messages) instead of leaving it out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tokenmill.core.errors import NetworkError, UsageError
from tokenmill.store.manifest import (
    ADAPTER,
    ADAPTER_FILE,
    FILE,
    LICENSE,
    MODEL,
    PARAMS,
    SYSTEM,
    TEMPLATE,
    Layer,
    Manifest,
)
from tokenmill.store.names import Reference
from tokenmill.store.progress import Progress
from tokenmill.store.sources.hf import hub, typed_error
from tokenmill.store.transport import Transient

_NAMES = {TEMPLATE: "template", SYSTEM: "system", PARAMS: "params"}


def push(destination: Reference, manifest: Manifest, path_of: Callable[[Layer], Path], progress: Progress) -> None:
    """One commit with all files of a model in the store. Raises UsageError, NetworkError (denied, unreachable)."""
    files = [(name, path_of(layer)) for layer, name in file_names(destination, manifest)]
    _commit(destination, files, progress)


def push_folder(destination: Reference, folder: Path, progress: Progress) -> None:
    """One commit with all files of a folder, hidden ones aside. Raises as :func:`push`."""
    if destination.kind != "hf":
        raise UsageError(f"{destination}: a folder can be pushed to the hub (hf:ORG/REPO); for a registry make a "
                         "model of it first (tokenmill create)")  # fmt: skip
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [(path.relative_to(folder).as_posix(), path) for path in found]
    files = [(name, path) for name, path in names if not any(part.startswith(".") for part in name.split("/"))]
    if not files:
        raise UsageError(f"{folder}: there is nothing in it to push")
    _commit(destination, files, progress)
    progress("success")


def _commit(destination: Reference, files: list[tuple[str, Path]], progress: Progress) -> None:
    """Everything as one commit: the repository has all of it or nothing new.

    The hub keeps large files that have arrived, by their digest, so a push that broke off sends only those it lacks.
    """
    from huggingface_hub import CommitOperationAdd

    api = hub()
    try:
        progress(f"creating {destination.repo}")
        api.create_repo(destination.repo, exist_ok=True)
        if destination.revision:
            api.create_branch(destination.repo, branch=destination.revision, exist_ok=True)
        operations = []
        for name, path in files:
            progress(f"adding {name}", None, path.stat().st_size, None)
            operations.append(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path))
        progress(f"pushing {len(files)} files", None, sum(path.stat().st_size for _, path in files), None)
        api.create_commit(
            destination.repo,
            operations,
            commit_message=f"Upload {destination.repo.rpartition('/')[2]}",
            revision=destination.revision or None,
        )
    except Exception as error:
        typed = typed_error(error, str(destination))
        if typed is None and isinstance(error.__cause__, Exception):  # the hub's wrapper around a failed part
            typed = typed_error(error.__cause__, str(destination))
        if isinstance(typed, Transient):
            typed = NetworkError(f"{typed}; try again: what has arrived is not sent again")
        if typed is None:
            raise
        raise typed from error


def file_names(destination: Reference, manifest: Manifest) -> list[tuple[Layer, str]]:
    """Each layer's file name in the repository. Raises UsageError for a layer that has no place there."""
    names: list[tuple[Layer, str]] = []
    licenses = 0
    for layer in manifest.layers:
        if layer.media_type == FILE:
            name = layer.title
        elif layer.media_type == MODEL:
            name = _gguf_name(destination, layer)
        elif layer.media_type == LICENSE:
            name = "LICENSE" if licenses == 0 else f"LICENSE.{licenses}"
            licenses += 1
        elif layer.media_type in _NAMES:
            name = _NAMES[layer.media_type]
        else:
            kind = layer.media_type.rpartition(".")[2]
            hint = (
                "; merge it into the model first (tokenmill merge)"
                if layer.media_type in (ADAPTER, ADAPTER_FILE)
                else ""
            )
            raise UsageError(f"{destination}: the hub's repositories have no place for a model's {kind!r}{hint}")
        names.append((layer, name))
    doubled = [name for name, count in Counter(name for _, name in names).items() if count > 1]
    if doubled:
        raise UsageError(f"{destination}: two of the model's files would both be named {doubled[0]!r}")
    return names


def _gguf_name(destination: Reference, layer: Layer) -> str:
    if destination.file and not destination.file.endswith(".gguf"):
        raise UsageError(f"{destination}: {destination.file!r} is to be the file's name, and that ends in .gguf")
    return destination.file or layer.title or f"{destination.repo.rpartition('/')[2]}.gguf"
