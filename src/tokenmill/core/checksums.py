"""Sums of files, alone and as the ``SHA256SUMS`` of a folder that is handed over."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tokenmill.core.errors import FormatError

SUMS = "SHA256SUMS"


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path) -> dict[str, str]:
    """``SHA256SUMS`` of every file below the folder, as sha256sum writes them; returns the sums by name."""
    files = sorted(one for one in folder.rglob("*") if one.is_file() and one.name != SUMS)
    sums = {one.relative_to(folder).as_posix(): sha256_of(one) for one in files}
    (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()), encoding="utf-8")
    return sums


def check_sums(folder: Path) -> None:
    """FormatError naming the first file that is not what ``SHA256SUMS`` says."""
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise FormatError(folder / name, "", f"is missing or not what {SUMS} says")
