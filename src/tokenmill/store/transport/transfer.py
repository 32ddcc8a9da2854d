"""Download to a partial file that a later call, or a later process, continues.

Beside the partial lies ``NAME.resume``, with the ETag of what is being received. A continuation asks for the rest with
``Range`` and ``If-Range``; it starts over when the server sends everything again, when the ETag differs, when the range
is not the one that was asked for, or, with nothing to prove that the rest belongs to the beginning (no ETag, no
sha256), at once. sha256 is computed while the bytes come in; a prefix from an earlier process is read again once.

Refused: more bytes than promised, a length that contradicts the promise, an endless answer, a disk without room.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx

from tokenmill.core.errors import DigestError, NetworkError, StoreError
from tokenmill.store.transport.client import Client, Transient
from tokenmill.store.transport.trust import shown

_BLOCK = 1 << 20
_PROGRESS_BYTES = 1 << 20  # an attempt that got this much does not count as failed
UNANNOUNCED_LIMIT = 16 << 30  # bytes taken from a server that says neither before nor in its header how many come
_RESERVE = 64 << 20  # bytes of disk left free
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-\d{1,19}/(\d{1,19}|\*)")
OnBytes = Callable[[int, "int | None"], None]  # completed, total


@dataclass(frozen=True)
class Received:
    """What a finished download is: sha256 as hex, bytes."""

    sha256: str
    size: int


def download(
    client: Client,
    url: str,
    partial: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    headers: Mapping[str, str] | None = None,
    on_bytes: OnBytes | None = None,
) -> Received:
    """Fetch `url` into `partial`, continuing what is there. The caller holds the lock on `partial`.

    Args:
        size: bytes promised, or None if nobody did.
        sha256: hex digest promised; checked, and a mismatch removes the partial.
    Raises: DigestError, NetworkError, NotFoundError, StoreError (disk), UsageError (address refused).
    """
    transfer = _Transfer(client, url, partial, size, sha256, dict(headers or {}), Throttle(on_bytes))
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        received = transfer.run()
        if sha256 is not None and received.sha256 != sha256 and transfer.resumed:
            transfer.start_over()  # the old part may have been the bad one: one fresh try
            received = transfer.run()
        if sha256 is not None and received.sha256 != sha256:
            raise DigestError(f"{shown(url)}: sha256 is {received.sha256}, promised was {sha256}; nothing was kept")
    except DigestError:
        discard(partial)
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{partial.parent}: the disk is full; free some space and run the same again") from error
        raise StoreError(f"{partial}: {error.strerror or error}") from error
    _note_path(partial).unlink(missing_ok=True)
    return received


def discard(partial: Path) -> None:
    """Remove a partial file and the note beside it."""
    partial.unlink(missing_ok=True)
    _note_path(partial).unlink(missing_ok=True)


def check_space(folder: Path, needed: int) -> None:
    """Raises StoreError when the disk of `folder` has no room for `needed` more bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free - _RESERVE:
        raise StoreError(f"{folder}: {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free")


@dataclass
class Throttle:
    """Calls `sink` at most ten times a second, and for the last byte."""

    sink: OnBytes | None
    clock: Callable[[], float] = time.monotonic
    _next: float = field(default=float("-inf"), init=False)

    def __call__(self, completed: int, total: int | None) -> None:
        now = self.clock()
        if self.sink is not None and (now >= self._next or completed == total):
            self._next = now + 0.1
            self.sink(completed, total)


@dataclass
class _Transfer:
    """The state of one download over all its attempts: how far it is, and the hash up to there."""

    client: Client
    url: str
    partial: Path
    size: int | None
    sha256: str | None
    headers: dict[str, str]
    on_bytes: Throttle
    resumed: bool = False
    offset: int = 0
    etag: str | None = None
    known_total: int | None = None  # from an earlier answer, where nobody promised a size
    file: IO[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.hasher = hashlib.sha256()

    def run(self) -> Received:
        with open(self.partial, "r+b" if self.partial.exists() else "w+b") as self.file:
            self._continue_earlier()
            if self.size is None or self.offset < self.size or self.size == 0:
                self.client.retrying(self._attempt)
            self.file.flush()
            os.fsync(self.file.fileno())
        return Received(self.hasher.hexdigest(), self.offset)

    def start_over(self) -> None:
        """Forget everything received, state and files."""
        self._reset()
        discard(self.partial)

    def _continue_earlier(self) -> None:
        """Take over what an earlier process left, if it can be proved to belong to what is to come."""
        length = self.file.seek(0, os.SEEK_END)
        self.file.seek(0)
        self.etag = _read_note(self.partial, self.url)
        provable = self.sha256 is not None or self.etag is not None
        if length == 0 or not provable or (self.size is not None and length > self.size):
            self._restart_file()
            return
        while block := self.file.read(_BLOCK):
            self.hasher.update(block)
        self.offset, self.resumed = length, True

    def _restart_file(self) -> None:
        """`start_over` while the file is open. Seeking first: it writes out what is buffered, before it is cut off."""
        self._reset()
        self.file.seek(0)
        self.file.truncate()

    def _reset(self) -> None:
        self.hasher, self.offset, self.etag, self.known_total, self.resumed = hashlib.sha256(), 0, None, None, False
        _note_path(self.partial).unlink(missing_ok=True)

    def _attempt(self) -> None:
        if self.offset and self.etag is None and self.sha256 is None:
            self._restart_file()
        before = self.offset
        headers = dict(self.headers)
        if self.offset:
            headers["Range"] = f"bytes={self.offset}-"
            if self.etag is not None:
                headers["If-Range"] = self.etag
        try:
            with self.client.stream("GET", self.url, headers=headers, accept=frozenset({416})) as response:
                self._receive(response)
        except Transient as error:
            error.progressed = self.offset - before >= _PROGRESS_BYTES
            raise
        expected = self._total()
        if expected is not None and self.offset < expected:
            raise Transient(
                f"{shown(self.url)}: cut off at {self.offset} of {expected} bytes",
                progressed=self.offset - before >= _PROGRESS_BYTES,
            )

    def _receive(self, response: httpx.Response) -> None:
        if response.status_code == 416:
            self._range_refused(response)
            return
        if not self._continues(response):
            self._restart_file()
        if response.status_code == 206 and self.offset == 0:
            raise Transient(f"{shown(self.url)}: sent a part that was not asked for")  # the next try asks for all
        self._note_identity(response)
        total = self._total()
        check_space(self.partial.parent, (total or 0) - self.offset)
        limit = total if total is not None else UNANNOUNCED_LIMIT
        for chunk in response.iter_raw():
            if self.offset + len(chunk) > limit:
                raise DigestError(f"{shown(self.url)}: sends more than the {limit} bytes expected; nothing was kept")
            self.file.write(chunk)
            self.hasher.update(chunk)
            self.offset += len(chunk)
            if total is None and self.offset % (256 * _BLOCK) < len(chunk):
                check_space(self.partial.parent, 0)
            self.on_bytes(self.offset, total)

    def _continues(self, response: httpx.Response) -> bool:
        """Whether the answer is the rest of what is already here."""
        if not self.offset:
            return True
        if response.status_code != 206:
            return False
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if match is None or int(match[1]) != self.offset:
            return False
        etag, known, announced = _strong_etag(response), self._total(), _announced_total(response)
        if None not in (known, announced) and known != announced:
            return False
        return self.etag is None or etag is None or etag == self.etag

    def _note_identity(self, response: httpx.Response) -> None:
        """Remember ETag and length, and hold the length against the promise. A cut file is found by its length only."""
        announced = _announced_total(response)
        if self.size is not None and announced is not None and announced != self.size:
            raise DigestError(f"{shown(self.url)}: offers {announced} bytes, promised were {self.size}")
        if self.offset == 0:
            self.known_total, self.etag = announced, _strong_etag(response)
            _write_note(self.partial, self.url, self.etag)
        elif self.known_total is None:
            self.known_total = announced

    def _range_refused(self, response: httpx.Response) -> None:
        """416: either everything is here already (``bytes */TOTAL`` says so), or what is here is of no use."""
        match = re.fullmatch(r"bytes \*/(\d{1,19})", response.headers.get("content-range", ""))
        if self.offset and match and int(match[1]) == self.offset and self.size in (None, self.offset):
            return
        if not self.offset:
            raise NetworkError(f"{shown(self.url)}: refuses a request for the whole file (416)")
        self._restart_file()
        raise Transient(f"{shown(self.url)}: the part here does not fit what the server has; starting over")

    def _total(self) -> int | None:
        return self.size if self.size is not None else self.known_total


def _announced_total(response: httpx.Response) -> int | None:
    """The length of the whole file, as the header of a 200 or a 206 tells it."""
    if response.status_code == 206:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        return int(match[2]) if match and match[2] != "*" else None
    length = response.headers.get("content-length", "")
    return int(length) if re.fullmatch(r"\d{1,19}", length) else None


def _strong_etag(response: httpx.Response) -> str | None:
    """A weak ETag (``W/…``) does not promise equal bytes and may not stand in If-Range (RFC 9110, 13.1.5)."""
    etag = str(response.headers.get("etag", ""))
    return etag if re.fullmatch(r'"[\x21\x23-\x7e]*"', etag) else None


def _note_path(partial: Path) -> Path:
    return partial.with_name(partial.name + ".resume")


def _write_note(partial: Path, url: str, etag: str | None) -> None:
    if etag is not None:
        _note_path(partial).write_text(json.dumps({"url": shown(url), "etag": etag}), encoding="utf-8")


def _read_note(partial: Path, url: str) -> str | None:
    with suppress(OSError, ValueError):
        note = json.loads(_note_path(partial).read_text(encoding="utf-8"))
        if isinstance(note, dict) and note.get("url") == shown(url) and isinstance(note.get("etag"), str):
            return str(note["etag"])
    return None
