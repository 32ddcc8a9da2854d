"""Checkpoints: whole or not there, written in the background, without pickle.

``checkpoints/step-N/`` holds ``weights.safetensors`` (what is trained), ``optimizer.safetensors`` and ``state.json``
(where everything else stands). It is written under another name, synced, renamed; then ``latest`` is moved. Whatever
happens on the way, a full disk or a kill, ``latest`` names a complete one. There is no random state to keep: the loop
derives it from seed and step.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from tokenmill.core.device import free_memory
from tokenmill.core.errors import FormatError, NotFoundError, StoreError
from tokenmill.formats.safetensors_file import SafetensorsFile, save_tensors
from tokenmill.formats.tensors import read_json_object

WEIGHTS, OPTIMIZER, STATE, LATEST = "weights.safetensors", "optimizer.safetensors", "state.json", "latest"
VERSION = 1


@dataclass(frozen=True)
class Snapshot:
    """Everything that a run needs to go on; JSON apart from the tensors."""

    step: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]

    def copied(self) -> Snapshot:
        """The same on the CPU and safe from further steps."""

        def copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: _own(tensor, always=True) for name, tensor in tensors.items()}

        return Snapshot(self.step, copy(self.weights), copy(self.optimizer), json.loads(json.dumps(self.state)))

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for tensors in (self.weights, self.optimizer) for t in tensors.values())


class Checkpoints:
    """The checkpoints of one run. ``failed`` is told of one that could not be written in the background."""

    def __init__(self, folder: Path, *, keep: int, failed: Callable[[int, str], None]) -> None:
        self.folder, self.keep = folder, keep
        self.kept_besides: set[int] = set()
        """Steps that are not removed when newer ones come: the best."""
        self._failed = failed
        self._writer: threading.Thread | None = None
        self._error: tuple[int, StoreError] | None = None

    # --- writing

    def save(self, snapshot: Snapshot, *, background: bool = True) -> None:
        """Write; in the background from a copy where memory allows, else at once.

        Raises:
            StoreError: it could not be written at once. In the background, ``failed`` is called from :meth:`wait` or
            from the next save. The checkpoints that are there stay as they are.
        """
        self.wait()
        room = free_memory(torch.device("cpu"))
        if background and (room is None or room > 3 * snapshot.nbytes):
            copied = snapshot.copied()
            self._writer = threading.Thread(target=self._write_aside, args=(copied,), name="checkpoint", daemon=True)
            self._writer.start()
        else:
            self._write(snapshot)

    def wait(self) -> None:
        """Until what is being written is there."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._error is not None:
            (step, error), self._error = self._error, None
            self._failed(step, str(error))

    def _write_aside(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
        except StoreError as error:
            self._error = (snapshot.step, error)

    def _write(self, snapshot: Snapshot) -> None:
        final = self.folder / f"step-{snapshot.step}"
        aside = self.folder / f".step-{snapshot.step}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            _write_tensors(aside / WEIGHTS, snapshot.weights)
            _write_tensors(aside / OPTIMIZER, snapshot.optimizer)
            state = {"version": VERSION, "step": snapshot.step, **snapshot.state}
            (aside / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
            for path in (*aside.iterdir(), aside):
                _sync(path)
            if final.exists():  # a run that was rolled back comes by again
                self._move_latest_from(final)
                shutil.rmtree(final)
            os.replace(aside, final)
            _sync(self.folder)
            self._point(final.name)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise StoreError(f"{final}: the checkpoint could not be written: {error}") from error
        self._prune()

    def _point(self, name: str) -> None:
        link = self.folder / f".{LATEST}.part"
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        os.replace(link, self.folder / LATEST)
        _sync(self.folder)

    def _move_latest_from(self, path: Path) -> None:
        """``latest`` never names what is about to be removed."""
        others = [step for step in self.steps() if step != _step_of(path)]
        if (self.folder / LATEST).is_symlink() and os.readlink(self.folder / LATEST) == path.name and others:
            self._point(f"step-{max(others)}")

    def _prune(self) -> None:
        steps = self.steps()
        wanted = {*steps[-self.keep :], *self.kept_besides, _step_of((self.folder / LATEST).resolve())}
        for step in steps:
            if step not in wanted:
                shutil.rmtree(self.folder / f"step-{step}", ignore_errors=True)

    def forget_after(self, step: int) -> None:
        """Remove checkpoints of a future that was rolled back."""
        for later in [s for s in self.steps() if s > step]:
            shutil.rmtree(self.folder / f"step-{later}", ignore_errors=True)
            self.kept_besides.discard(later)

    # --- reading

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, rising."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
        return sorted(_step_of(path) for path in found)

    def latest(self) -> Path | None:
        """The checkpoint that ``latest`` names; None when there is none yet."""
        link = self.folder / LATEST
        if link.exists():
            return link.resolve()
        steps = self.steps()  # killed between the first rename and the first `latest`
        return self.folder / f"step-{steps[-1]}" if steps else None


def read_checkpoint(path: Path) -> Snapshot:
    """A checkpoint, its tensors mapped from the files.

    Raises:
        NotFoundError: nothing is there. FormatError: it is broken, or of a later version.
    """
    if not (path / STATE).is_file():
        raise NotFoundError(f"{path}: there is no checkpoint here")
    state = read_json_object(path / STATE)
    if state.get("version") != VERSION:
        raise FormatError(path / STATE, "version", f"is {state.get('version')!r}, this tokenmill reads {VERSION}")
    files = [SafetensorsFile(path / name) for name in (WEIGHTS, OPTIMIZER)]
    weights, optimizer = ({name: file.load(name) for name in file.infos()} for file in files)
    return Snapshot(int(state["step"]), weights, optimizer, state)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_tensors({name: _own(tensor) for name, tensor in tensors.items()}, path)


def _own(tensor: Tensor, always: bool = False) -> Tensor:
    """Contiguous, on the CPU, whole: a view would write all of what it is a view of."""
    moved = tensor.detach().to("cpu").contiguous()
    whole = moved.untyped_storage().nbytes() == moved.nbytes
    copied = moved.data_ptr() != tensor.data_ptr()
    return moved if whole and (copied or not always) else moved.clone()


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
