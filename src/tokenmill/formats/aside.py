"""A folder that is there whole or not at all: built beside its place, renamed into it at the end.

Of two commands that write one folder the second is refused, by a lock in the folder that they build in.
"""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenmill.core.errors import UsageError

_LOCK = "lock"


def refuse_taken(out: Path) -> None:
    """UsageError where something is at ``out`` that is no empty folder, and where no folder can be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is there already; give a new or empty folder")
    if out.absolute() == Path.cwd():
        raise UsageError(f"--out {out} is the folder that you are in; give one of its own")
    there = next(parent for parent in out.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"--out {out}: nothing can be written in {there}")


def move_into_place(built: Path, out: Path) -> None:
    """Rename a finished folder to its name, which must be free or an empty folder."""
    if out.is_dir():
        out.rmdir()
    out.parent.mkdir(parents=True, exist_ok=True)
    os.replace(built, out)


@contextmanager
def built_aside(out: Path) -> Iterator[Path]:
    """Inside, a folder to build in; it becomes ``out`` when everything went well, else it is removed.

    A process that is killed leaves a folder ``.NAME.writing-…`` beside, never half of ``out``; the next one that writes
    there removes it. UsageError where ``out`` is taken, or where somebody else is writing it just now.
    """
    from filelock import FileLock

    refuse_taken(out)
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}.writing-"
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=prefix))
    try:
        with FileLock(work / _LOCK):  # first this, then a look at others: of two that begin at once one sees the other
            for left in out.parent.glob(f"{glob.escape(prefix)}*"):
                if left != work:
                    _remove_left(left, out)
            stage = work / out.name
            stage.mkdir()
            yield stage
            move_into_place(stage, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def held(work: Path, out: Path) -> Iterator[None]:
    """Inside, ``work`` is this process's alone: the folder in which ``out`` is built, over several runs if need be.

    What is in it stays for the next run. UsageError where another command holds it, or has written ``out`` meanwhile.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(work / _LOCK)
    work.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise _written_now(out) from None
    try:
        refuse_taken(out)
        yield
    finally:
        if all(path.name == _LOCK for path in work.glob("*")):
            shutil.rmtree(work, ignore_errors=True)
        lock.release()


def _remove_left(left: Path, out: Path) -> None:
    """Remove what a process left that was killed. UsageError where it lives and holds its lock."""
    from filelock import FileLock, Timeout

    if not (left / _LOCK).exists():  # it begins just now, or was killed when it began: there is nothing in it
        return
    try:
        with FileLock(left / _LOCK).acquire(blocking=False):
            shutil.rmtree(left, ignore_errors=True)
    except Timeout:
        raise _written_now(out) from None


def _written_now(out: Path) -> UsageError:
    return UsageError(f"--out {out}: another command is writing there just now; wait for it, or give another folder")
