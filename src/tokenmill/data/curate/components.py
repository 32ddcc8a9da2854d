"""Union-find over document numbers, many pairs at a time: which documents are copies of each other, directly or by
way of others.

The parents are an array that may lie in a file, so that the number of documents is not bounded by memory. The smaller
root always becomes the parent of the larger one: a component's root is its smallest number, whatever the order of the
pairs, and a parent is never larger than its child, so the whole forest can be flattened in one pass from the front.
Source of the hooking by batches: Shiloach and Vishkin 1982, "An O(log n) parallel connectivity algorithm".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

_CHUNK = 1 << 20


class Components:
    """`count` documents, at first each alone.

    Args:
        path: where the parents lie; None keeps them in memory.
    """

    def __init__(self, count: int, path: Path | None = None) -> None:
        self.parent: np.ndarray
        """int64; of a root, itself."""
        if path is None or count == 0:  # an empty file cannot be mapped
            self.parent = np.arange(count, dtype=np.int64)
            return
        self.parent = np.memmap(path, np.int64, "w+", shape=(count,))
        for start in range(0, count, _CHUNK):
            end = min(start + _CHUNK, count)
            self.parent[start:end] = np.arange(start, end)

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """``left[i]`` and ``right[i]`` are copies of each other, for every i; int64."""
        while len(left):
            left, right = self.find(left), self.find(right)
            apart = left != right
            left, right = left[apart], right[apart]
            # minimum, so that of several new parents the smallest stays and the others become its children next
            np.minimum.at(self.parent, np.maximum(left, right), np.minimum(left, right))

    def find(self, numbers: np.ndarray) -> np.ndarray:
        """The roots of `numbers`; paths walked are shortened."""
        roots = self.parent[numbers]
        while True:
            above = self.parent[roots]
            if np.array_equal(above, roots):
                return roots
            # two steps at once, for what was passed too: a long chain is walked in a logarithm of its length
            top = self.parent[above]
            self.parent[roots] = top
            self.parent[numbers] = top
            roots = top

    def flatten(self) -> np.ndarray:
        """Every document's root, int64 [count]: the same array as ``parent``, which no longer has paths."""
        for start in range(0, len(self.parent), _CHUNK):
            part = self.parent[start : start + _CHUNK]
            while not np.array_equal(above := self.parent[part], part):
                part[:] = above
        return self.parent
