"""Names for what a result follows from: a model's content, a file, the code that computed it.

Large files are hashed once: the hash is kept beside size, times and inode, as git keeps its index, and a file that
changed in any of them is read again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from tokenmill.core.paths import atomic_write, home

SMALL = 1 << 20
"""Bytes up to which a file is always read: its times may be too coarse to show a change within one tick."""


def digest_of(value: Any) -> str:
    """Hex sha256 of a value that JSON can say, whatever the order of its keys."""
    said = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


def content_digest(paths: Iterable[Path]) -> str:
    """Hex sha256 over files and folders: names below the folders, and bytes. Hidden files do not count."""
    parts: list[list[str]] = []
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file, path))
            parts += [[file.relative_to(path).as_posix(), _file_digest(file)] for file in files]
        else:
            parts.append(["", _file_digest(path)])
    return digest_of(parts)


@cache
def code_digest() -> str:
    """Hex sha256 over tokenmill's own files (kernels too) and versions beneath it: any of them may turn a result."""
    from importlib.metadata import version

    root = Path(str(resources.files("tokenmill")))
    files = sorted(file for file in root.rglob("*") if file.suffix in (".py", ".so"))
    hashed = [[file.relative_to(root).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest()] for file in files]
    return digest_of([hashed, version("torch"), version("tokenizers")])


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _file_digest(file: Path) -> str:
    about = file.resolve().stat()
    if about.st_size <= SMALL:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    key = [str(file.resolve()), about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]
    memo = home() / "cache" / "digests" / f"{digest_of(key)}.txt"
    try:
        known = memo.read_text(encoding="ascii")
        if len(known) == 64:
            return known
    except (OSError, UnicodeDecodeError):
        pass
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    with atomic_write(memo) as kept:
        kept.write(found.encode())
    return found
