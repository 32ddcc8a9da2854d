"""Equal keys found on disk: (key, number) records spread over files by the key's first bits, each file sorted alone.

So the memory taken is that of one file, whatever the number of records; datatrove's and CCNet's ways need an index of
all keys, or a merge of sorted runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

RECORDS_A_FILE = 1 << 21
"""Aimed at; with its copies in sorting a file takes about 100 MB."""


class Groups:
    """Collects records and gives them back sorted. Keys have to be spread evenly over 64 bits: hashes.

    Args:
        folder: an empty one, for the files; they are removed at the end.
        count: about how many records there will be.
        columns: uint64 a record: the key first, the rest as it pleases.
    """

    def __init__(self, folder: Path, count: int, columns: int = 2) -> None:
        self.folder, self.columns = folder, columns
        self.bits = max(0, (max(count, 1) - 1) // RECORDS_A_FILE).bit_length()
        folder.mkdir(parents=True, exist_ok=True)
        self._files = [(folder / f"{number:05d}.bin").open("w+b") for number in range(1 << min(self.bits, 10))]
        self.bits = min(self.bits, 10)  # files open at once; beyond 2^31 records they grow instead

    def __enter__(self) -> Groups:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()
            Path(file.name).unlink(missing_ok=True)
        self.folder.rmdir()

    def add(self, *columns: np.ndarray) -> None:
        """More records, a column each."""
        records = np.stack([column.astype(np.uint64, copy=False) for column in columns], axis=1)
        if not self.bits:
            self._files[0].write(records.tobytes())
            return
        part = (records[:, 0] >> np.uint64(64 - self.bits)).astype(np.int16)  # sorted by radix: five times as fast
        order = np.argsort(part, kind="stable")
        records = records[order]
        ends = np.cumsum(np.bincount(part, minlength=len(self._files)))
        for file, block in zip(self._files, np.split(records, ends[:-1]), strict=True):
            file.write(block.tobytes())

    def alike(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """A pair of arrays (number, number) a file: neighbours among records of one key, the last column's values.
        A key that k records have gives k - 1 pairs, which join them all. With three columns the first two are the key.
        """
        for file in self._files:
            file.seek(0)
            records = np.frombuffer(file.read(), np.uint64).reshape(-1, self.columns)
            keys = np.ascontiguousarray(records[:, 0])
            order = np.argsort(keys)
            same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
            left, right = records[order[same]], records[order[same + 1]]
            if self.columns == 3 and not np.array_equal(left[:, 1], right[:, 1]):
                # one half of two keys is equal by chance: rare enough to sort all again
                order = np.lexsort((records[:, 1], keys))
                left, right = records[order[:-1]], records[order[1:]]
                equal = (left[:, :2] == right[:, :2]).all(axis=1)
                left, right = left[equal], right[equal]
            yield left[:, -1].astype(np.int64), right[:, -1].astype(np.int64)

    def sorted(self) -> Iterator[np.ndarray]:
        """All records, uint64 [n, columns] a file, sorted by the first column, then by the others in turn. Records of
        one key are in one file."""
        for file in self._files:
            file.seek(0)
            records = np.frombuffer(file.read(), np.uint64).reshape(-1, self.columns)
            yield records[np.lexsort(tuple(records[:, column] for column in reversed(range(self.columns))))]
