"""The order in which samples are seen: a function of seed and epoch alone, wherever a run stops and goes on.

An epoch is a permutation of the data set, cut into windows of `WINDOW` samples; a window is packed into rows, the rows
are shuffled. Process r of w takes rows r·m … of every group of w·m rows (m: ``micro_batch``). The position is counted
in rows of all processes together, so a run that goes on with twice the processes sees the same rows in the same order.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from tokenmill.core.errors import ConfigError, UsageError
from tokenmill.data.batch import Batch, PairBatch, Sample
from tokenmill.data.packing import best_fit

WINDOW = 2048
"""Samples that are packed together: enough for full rows, few enough to be quick anywhere in an epoch."""

Collate = Callable[[Sequence[Sample], int], "Batch | PairBatch"]
"""(samples, seed) → a batch. What it draws must follow from seed, ``Sample.epoch`` and ``Sample.index`` alone, never
from which samples lie in one batch: the same sample then comes out the same with any number of processes."""


class Samples(Protocol):
    """What a loader reads: see :class:`tokenmill.data.dataset.Dataset`."""

    lengths: np.ndarray

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...
    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class _Place:
    """The next row: everything before it was handed out."""

    epoch: int = 0
    window: int = 0
    row: int = 0
    rows: int = 0
    """Rows handed out since the beginning, of all processes."""


@dataclass(frozen=True)
class _Group:
    """The rows of one batch of this process, each with its epoch, and the place after those of all processes."""

    rows: list[tuple[int, list[int]]]
    after: _Place


class Loader:
    """Batches for ever, epoch after epoch.

    Args:
        dataset: the samples.
        seq_len: tokens that a row holds.
        micro_batch: rows of a batch.
        seed: of the order.
        rank, world_size: which share of the rows this process gets.
        workers: threads that make batches ahead; 0 makes them when they are asked for. The order is the same.
        packing: several documents in a row; otherwise a row is one document.
        shuffle: False keeps the data's own order.
        collate: makes a batch out of samples; default `Batch.of`.
    """

    def __init__(
        self,
        dataset: Samples,
        *,
        seq_len: int,
        micro_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        packing: bool = True,
        shuffle: bool = True,
        collate: Collate | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise ConfigError("there is nothing to load: the data set is empty")
        self.dataset, self.seq_len, self.micro_batch, self.seed = dataset, seq_len, micro_batch, seed
        self.rank, self.world_size, self.workers = rank, world_size, workers
        self.packing, self.shuffle = packing, shuffle
        self.collate: Collate = collate or (lambda samples, seed: Batch.of(samples))
        self._place = _Place()
        self._window: tuple[tuple[int, int], list[list[int]]] = ((-1, -1), [])
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    # --- iteration

    def __iter__(self) -> Iterator[Batch | PairBatch]:
        return self._produced(self._groups())

    def once(self, batches: int | None = None) -> Iterator[Batch | PairBatch]:
        """One pass from the beginning of epoch 0, at most `batches` of them: for evaluation. Leaves the position alone.
        With several processes the last ones may get a batch less."""
        fresh = self._copy()
        return fresh._produced(itertools.islice(fresh._groups(once=True), batches))

    def _produced(self, groups: Iterator[_Group]) -> Iterator[Batch | PairBatch]:
        if self.workers == 0:
            for group in groups:
                if (batch := self._batch(group)) is not None:
                    self._place = group.after
                    yield batch
            return
        with ThreadPoolExecutor(self.workers, thread_name_prefix="loader") as pool:
            ahead: deque[tuple[Future[Any], _Place]] = deque()
            try:
                for group in groups:
                    ahead.append((pool.submit(self._batch, group), group.after))
                    if len(ahead) > 2 * self.workers:
                        yield from self._next(ahead)
                while ahead:
                    yield from self._next(ahead)
            finally:
                for future, _ in ahead:
                    future.cancel()

    def _next(self, ahead: deque[tuple[Future[Any], _Place]]) -> Iterator[Batch | PairBatch]:
        future, place = ahead.popleft()
        if (batch := future.result()) is not None:
            self._place = place
            yield batch

    def _batch(self, group: _Group) -> Batch | PairBatch | None:
        samples = [replace(self.dataset[index], epoch=epoch) for epoch, row in group.rows for index in row]
        return self.collate(samples, self.seed) if samples else None

    def _groups(self, *, once: bool = False) -> Iterator[_Group]:
        """What this process gets, for ever; `once` ends with the epoch, the last group being what is left of it."""
        place, each = self._place, self.micro_batch * self.world_size
        while not (once and place.epoch > 0):
            rows: list[tuple[int, list[int]]] = []
            while len(rows) < each and not (once and place.epoch > 0):
                epoch = place.epoch
                row, place = self._take(place)
                rows.append((epoch, row))
            yield _Group(rows[self.rank * self.micro_batch : (self.rank + 1) * self.micro_batch], place)

    def _take(self, place: _Place) -> tuple[list[int], _Place]:
        rows = self._rows(place.epoch, place.window)
        after = _Place(place.epoch, place.window, place.row + 1, place.rows + 1)
        if after.row == len(rows):
            last = (place.window + 1) * WINDOW >= len(self.dataset)
            after = _Place(*((place.epoch + 1, 0) if last else (place.epoch, place.window + 1)), 0, after.rows)
        return rows[place.row], after

    def _rows(self, epoch: int, window: int) -> list[list[int]]:
        """Sample numbers of every row of a window."""
        if self._window[0] != (epoch, window):
            picked = self._permutation(epoch)[window * WINDOW : (window + 1) * WINDOW]
            if self.packing:
                packed = best_fit(self.dataset.lengths[picked].tolist(), self.seq_len)
                rows = [[int(picked[i]) for i in row] for row in packed]
            else:
                rows = [[int(index)] for index in picked]
            if self.shuffle:
                rows = [rows[i] for i in random_of(self.seed, epoch, window + 1).permutation(len(rows))]
            self._window = ((epoch, window), rows)
        return self._window[1]

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            size = len(self.dataset)
            order = random_of(self.seed, epoch, 0).permutation(size) if self.shuffle else np.arange(size)
            self._order = (epoch, order)
        return self._order[1]

    # --- length and position

    def rows_in_epoch(self, epoch: int = 0) -> int:
        """Rows of an epoch, exactly; it differs a little between epochs, as their packing does."""
        fresh = self._copy()
        return sum(len(fresh._rows(epoch, window)) for window in range(-(-len(self.dataset) // WINDOW)))

    def rows_in_epochs(self, epochs: float) -> int:
        """Rows of the first `epochs` epochs; a part of an epoch counts rounded up."""
        whole = sum(self.rows_in_epoch(epoch) for epoch in range(int(epochs)))
        part = epochs - int(epochs)
        return whole + (int(np.ceil(part * self.rows_in_epoch(int(epochs)))) if part else 0)

    def state(self) -> dict[str, Any]:
        """Where the batches handed out so far end; JSON. It fits any ``world_size``, ``workers`` and ``rank``."""
        place = self._place
        return {
            "epoch": place.epoch,
            "window": place.window,
            "row": place.row,
            "rows": place.rows,
            **self._identity,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; iterators that were made before do not notice.

        Raises:
            ConfigError: the state belongs to other data or to another order.
        """
        ours = self._identity
        wrong = [f"{name} was {state.get(name)!r}, is {ours[name]!r}" for name in ours if state.get(name) != ours[name]]
        if wrong:
            raise ConfigError(f"the run cannot go on with this data in the same order: {'; '.join(wrong)}")
        self._place = _Place(state["epoch"], state["window"], state["row"], state["rows"])

    def skip(self, batches: int) -> None:
        """Pass over so many batches of every process: a window of data that did harm."""
        if batches < 0:
            raise UsageError(f"data can only be passed over forwards, not by {batches} batches")
        place = self._place
        for _ in range(batches * self.micro_batch * self.world_size):
            _, place = self._take(place)
        self._place = place

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """What an order follows from, beside the position; hashing a large data set takes a moment, so once."""
        names = ("seq_len", "seed", "packing", "shuffle")
        return {"dataset": self.dataset.fingerprint, **{name: getattr(self, name) for name in names}}

    def _copy(self) -> Loader:
        names = ("seq_len", "micro_batch", "seed", "rank", "world_size", "workers", "packing", "shuffle", "collate")
        return Loader(self.dataset, **{name: getattr(self, name) for name in names})


def random_of(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """A generator that is the same on every machine and independent of those with other numbers."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, stream])))
