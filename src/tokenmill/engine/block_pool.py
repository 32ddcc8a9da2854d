"""The blocks of a paged KV cache, counted. No torch: a block is a number, what it holds lies in the runner's tensors.

Every block is in exactly one of three states, and ``check`` proves it:

    free     holds nothing anyone will ask for
    used     in the block table of one request or several (a shared prefix), counted
    cached   in no table, but its content is known by its hash and may be found again; given away, oldest first,
             when there is no free block

A full block's hash covers its tokens and, through its parent's hash, everything before them, so equal hashes mean an
equal prefix (Kwon et al. 2023; the chained hash is vLLM's). blake2b, because Python's own hash can be made to collide,
and one person's prefix must never be taken for another's.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b


def block_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The hash of a full block that follows the prefix hashed to ``parent`` (a salt, for the first block)."""
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()


class BlockPool:
    """Hands out ``num_blocks`` blocks of ``block_size`` token slots each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._uses: dict[int, int] = {}
        self._cached: OrderedDict[int, bytes] = OrderedDict()  # block -> hash, least recently used first
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def available(self) -> int:
        """How many blocks can be taken: the free ones and the cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def used(self) -> int:
        return len(self._uses)

    @property
    def cached(self) -> int:
        return len(self._cached)

    def take(self, count: int) -> list[int] | None:
        """``count`` blocks to write into, each used once, or None (and nothing changes) if there are not so many."""
        if count > self.available:
            return None
        blocks = []
        for _ in range(count):
            block = self._free.pop() if self._free else self._evict()
            self._uses[block] = 1
            blocks.append(block)
        return blocks

    def find(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known prefix of ``hashes``. Changes nothing: :meth:`share` takes them."""
        blocks = []
        for digest in hashes:
            if (block := self._block_of.get(digest)) is None:
                break
            blocks.append(block)
        return blocks

    def share(self, blocks: Sequence[int]) -> None:
        """Use blocks that :meth:`find` found, one more time each."""
        for block in blocks:
            self._cached.pop(block, None)
            self._uses[block] = self._uses.get(block, 0) + 1

    def name(self, block: int, digest: bytes) -> None:
        """A used block is now full and holds what ``digest`` says. A second copy of known content stays nameless."""
        if digest not in self._block_of and block not in self._hash_of:
            self._hash_of[block], self._block_of[digest] = digest, block

    def release(self, blocks: Sequence[int]) -> None:
        """Give up one use of each. A sequence's last blocks are forgotten first, for beginnings are shared most."""
        for block in reversed(blocks):
            self._uses[block] -= 1
            if self._uses[block] == 0:
                del self._uses[block]
                if block in self._hash_of:
                    self._cached[block] = self._hash_of[block]
                else:
                    self._free.append(block)

    def clear_cache(self) -> None:
        """Forget every prefix (the weights have changed). Blocks in use stay, without their names."""
        self._free += self._cached
        self._cached.clear()
        self._hash_of.clear()
        self._block_of.clear()

    def _evict(self) -> int:
        block, digest = self._cached.popitem(last=False)
        del self._hash_of[block], self._block_of[digest]
        return block

    def check(self) -> None:
        """Assert what must always hold; cheap enough to run whenever the engine is idle."""
        free, used, cached = set(self._free), set(self._uses), set(self._cached)
        assert len(free) == len(self._free), "a block is free twice"
        assert free.isdisjoint(used | cached), "a free block is in another state too"
        assert used.isdisjoint(cached), "a used block is in the cache list too"
        assert len(free) + len(used) + len(cached) == self.num_blocks, "free + used + cached is not the total"
        assert all(uses > 0 for uses in self._uses.values()), "a used block has no user"
        assert self._block_of == {digest: block for block, digest in self._hash_of.items()}, "hashes and blocks differ"
        assert cached <= self._hash_of.keys(), "a cached block has no name"
        assert free.isdisjoint(self._hash_of), "a free block has a name"
