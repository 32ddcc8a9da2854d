"""Models that other programs keep on this machine, found and used in place, never written to.

- Ollama: ``OLLAMA_MODELS``, else ``~/.ollama/models`` and the folder of its Linux service.
- Hugging Face: ``HF_HUB_CACHE``, ``HF_HOME/hub``, else ``~/.cache/huggingface/hub``; ``models--ORG--REPO/refs/REV``
  holds the commit whose files are in ``snapshots/COMMIT``.
- LM Studio: ``~/.lmstudio/models`` and ``~/.cache/lm-studio/models``, as ``ORG/REPO/*.gguf``.

A snapshot's files are symbolic links into its repository's ``blobs``. One that leads anywhere else is refused. What is
not complete (a download under way, a shard missing) is treated as not there.

Source: huggingface_hub's "Understand caching"; envconfig/config.go of Ollama.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from tokenmill.core.errors import NotFoundError, StoreError
from tokenmill.store.library import Library, ModelFiles
from tokenmill.store.names import DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG, Reference
from tokenmill.store.select import select_files

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_INDEX_BYTES = 64 << 20


def ollama_libraries() -> list[Library]:
    """Ollama's stores on this machine that can be read."""
    given = os.environ.get("OLLAMA_MODELS")
    home = Path.home()
    roots = [Path(given)] if given else [home / ".ollama/models", Path("/usr/share/ollama/.ollama/models")]
    return [Library(root, foreign=True) for root in roots if os.access(root / "manifests", os.R_OK | os.X_OK)]


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it downloads."""
    for variable, below in (("HF_HUB_CACHE", "."), ("HUGGINGFACE_HUB_CACHE", "."), ("HF_HOME", "hub")):
        if given := os.environ.get(variable):
            return Path(given).expanduser() / below
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "huggingface/hub"


def lmstudio_folders() -> list[Path]:
    """Where LM Studio keeps models."""
    return [Path.home() / ".lmstudio/models", Path.home() / ".cache/lm-studio/models"]


def find_in_ollama(reference: Reference) -> ModelFiles | None:
    """The model of this name in Ollama's own store."""
    for library in ollama_libraries():
        if name := library.find(reference.name):
            return library.files(name)
    return None


def find_in_hub_cache(reference: Reference) -> ModelFiles | None:
    """The repository that `reference` names, if the hub's cache or LM Studio has it whole."""
    repo = _repo_of(reference)
    if not repo:
        return None
    folder = hub_cache() / f"models--{repo.replace('/', '--')}"
    commit = _commit(folder, reference.revision or "main")
    if commit:
        snapshot = folder / "snapshots" / commit
        if found := _whole_model(snapshot, reference, f"Hugging Face's cache, revision {commit}", inside=folder):
            return found
    for root in lmstudio_folders() if not reference.revision else []:
        place = root / repo
        if found := _whole_model(place, reference, f"LM Studio: {root}", inside=place):
            return found
    return None


def names() -> Iterator[str]:
    """Names of the models found here, as `run` takes them."""
    for library in ollama_libraries():
        yield from map(str, library.names())
    for folder in hub_cache().glob("models--*"):
        yield "hf:" + folder.name.removeprefix("models--").replace("--", "/")


def folder_files(folder: Path) -> list[str]:
    """Relative names of the files below `folder`, at most four levels deep; hidden ones are left out."""
    found = []
    for root, folders, files in os.walk(folder):
        place = Path(root).relative_to(folder)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and len(place.parts) < 3)
        found += [(place / name).as_posix() for name in sorted(files) if not name.startswith(".")]
    return found


def missing_shards(folder: Path, chosen: Iterable[str]) -> list[str]:
    """Files that an index among `chosen`, or a GGUF split's name, promises and that are not in `folder`."""
    wanted: set[str] = set()
    for name in chosen:
        path = folder / name
        if name.endswith(".safetensors.index.json") and path.stat().st_size <= _MAX_INDEX_BYTES:
            try:
                plain = json.loads(path.read_bytes())
                wanted |= {shard for shard in plain["weight_map"].values() if isinstance(shard, str)}
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise StoreError(f"{path} is not an index of shards; download the model again") from None
        split = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.gguf", name)
        if split:
            wanted |= {f"{split[1]}-{i:05}-of-{split[2]}.gguf" for i in range(1, int(split[2]) + 1)}
    return sorted(name for name in wanted if "\0" in name or not (folder / name).is_file())


def _repo_of(reference: Reference) -> str:
    if reference.kind == "hf":
        return reference.repo
    name = reference.name  # ORG/REPO without a prefix is what people of transformers and vLLM type
    plain = reference.kind == "name" and name.host == DEFAULT_HOST and name.tag == DEFAULT_TAG
    return f"{name.namespace}/{name.model}" if plain and name.namespace != DEFAULT_NAMESPACE else ""


def _commit(folder: Path, revision: str) -> str:
    if _COMMIT.fullmatch(revision):
        return revision
    try:
        commit = (folder / "refs" / revision).read_text()[:64].strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return commit if _COMMIT.fullmatch(commit) else ""


def _whole_model(folder: Path, reference: Reference, source: str, *, inside: Path) -> ModelFiles | None:
    try:
        chosen = select_files(folder_files(folder), reference.file, str(folder))
    except NotFoundError:
        return None
    for name in chosen:
        path = (folder / name).resolve()
        if not path.is_relative_to(inside.resolve()):
            raise StoreError(f"{folder / name} leads out of {inside} through a symbolic link; refused")
        if not path.is_file():
            return None
    if missing_shards(folder, chosen):
        return None
    sizes = [(folder / name).stat().st_size for name in chosen]
    return ModelFiles(
        name=reference.text,
        path=folder / chosen[0] if chosen[0].endswith(".gguf") else folder,
        size=sum(sizes),
        source=source,
        modified=datetime.fromtimestamp(folder.stat().st_mtime, UTC),
    )
