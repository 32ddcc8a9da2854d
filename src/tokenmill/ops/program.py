"""A pass through a model, recorded once and run many times by the native kernels: what a CUDA graph is to a GPU.

A small model's step has four milliseconds in all, and Python's part of a few hundred operations would be most of it.
So the model's own code runs once on symbols. Each operation it calls is written down as a step of a native program
instead of being computed; later passes run the list, whatever their number of tokens up to ``max_rows``. There is no
second definition of any layer: a model that does something which has no native step cannot be recorded
(:class:`CannotRecord` says what), and runs on torch.

Symbols are float32 rows [T, ...]; memory of those that nobody holds any more is given to later ones, which is right
because the steps run in the order in which they were recorded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenmill.ops.native import UNARY
from tokenmill.ops.packed import FLOATS, Packed, kernels
from tokenmill.ops.registry import Traced

CACHES = (torch.float32, torch.bfloat16, torch.int8)
"""How keys and values may be stored, in the order of the kernels' ``CacheType``."""

MOST_SHARING = 64
"""Query heads of one key head that the attention kernels have scratch memory for (``scratch_floats``)."""


class CannotRecord(Exception):
    """The pass does something that has no native step; the message says what."""


class Indices(Traced):
    """The tokens or positions of a pass: what an embedding takes."""

    def __init__(self, recorder: Recorder, positions: bool) -> None:
        self.recorder, self.positions = recorder, positions
        self.device = torch.device("cpu")


class Symbol(Traced):
    """Rows of numbers that a pass will compute, [T, *shape]."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, recorder: Recorder, buffer: Buffer, shape: tuple[int, ...]) -> None:
        self.recorder, self.buffer, self.shape = recorder, buffer, (recorder.max_rows, *shape)

    @property
    def width(self) -> int:
        """Numbers a row."""
        return math.prod(self.shape[1:])

    @property
    def at(self) -> int:
        """The address."""
        return self.buffer.memory.data_ptr()

    def unflatten(self, dim: int, sizes: tuple[int, ...]) -> Symbol:
        if dim != -1 or len(self.shape) != 2:
            raise CannotRecord("unflatten other than of a row's numbers")
        known = math.prod(size for size in sizes if size != -1)
        return Symbol(self.recorder, self.buffer, tuple(self.width // known if size == -1 else size for size in sizes))

    def flatten(self, start: int) -> Symbol:
        if start != 1:
            raise CannotRecord("flatten over rows")
        return Symbol(self.recorder, self.buffer, (self.width,))

    def __add__(self, other: object) -> Symbol:
        if not isinstance(other, Symbol) or other.shape != self.shape:
            raise CannotRecord("a sum with something other than rows of the same width")
        return self.recorder.add(self, other)

    def __mul__(self, factor: float | Tensor) -> Symbol:
        if isinstance(factor, Tensor) and factor.numel() != 1:
            raise CannotRecord("a product with a vector")
        return self.recorder.scale(self, float(factor))


class Buffer:
    """Memory for ``max_rows`` rows, back in the recorder's hands when nobody holds it."""

    def __init__(self, recorder: Recorder, width: int) -> None:
        free = recorder.free.setdefault(width, [])
        self.memory = free.pop() if free else recorder.kept(torch.empty(recorder.max_rows * width))
        self._free = free

    def __del__(self) -> None:
        self._free.append(self.memory)


class Recorder:
    """Writes the steps of one program. Its methods are named after the operations whose calls they record."""

    def __init__(self, max_rows: int, matrices: torch.dtype | None = None) -> None:
        """``matrices``: what plain matrices are packed as, their own type by default."""
        self.max_rows, self.matrices = max_rows, matrices
        self.program = self.begin()
        self.free: dict[int, list[Tensor]] = {}
        self._kept: list[Any] = []
        self._derived: list[tuple[Tensor, Packed | Tensor]] = []
        self._computed: list[tuple[Callable[[], Tensor], Packed]] = []

    def begin(self) -> Any:
        """Record another program from now on, which shares weights and memory with those before; they run in turn."""
        self.program = kernels().module.Program(self.max_rows)
        return self.program

    def kept(self, thing: Any) -> Any:
        """Keep something alive as long as the program, which only knows its address."""
        self._kept.append(thing)
        return thing

    def record(self, op: str, *args: Any, **kwargs: Any) -> Any:
        method: Callable[..., Any] | None = getattr(self, op, None)
        if method is None:
            raise CannotRecord(f"{op} has no native step")
        return method(*args, **kwargs)

    def _new(self, *shape: int) -> Symbol:
        return Symbol(self, Buffer(self, math.prod(shape)), shape)

    def _constant(self, values: Tensor) -> int:
        """The address of a vector in float32."""
        self._check(values)
        vector = self.kept(values.detach().to("cpu", torch.float32).contiguous())
        if vector.data_ptr() != values.data_ptr():
            self._derived.append((values, vector))
        return int(vector.data_ptr())

    @staticmethod
    def _check(values: Tensor) -> None:
        if values.requires_grad and not values.is_leaf:
            raise CannotRecord("weights computed from others that are trained")

    def refresh(self) -> None:
        """Take over the weights as they are now. What is frozen has not changed since it was recorded."""
        for compute, packed in self._computed:
            packed.fill(compute())
        for weight, derived in self._derived:
            if not weight.requires_grad:
                continue
            if isinstance(derived, Packed):
                derived.fill(weight)
            else:
                derived.copy_(weight.detach())

    def pick(self, rows: Symbol) -> Symbol:
        """Some rows of what another program computed, by index: the indices are this program's tokens."""
        y = self._new(*rows.shape[1:])
        self.program.pick(self.kept(rows).at, rows.width, y.at)
        return y

    # the operations of ops/, with their signatures

    def embedding(self, indices: Indices, weight: Tensor | Packed) -> Symbol:
        packed = self.matrix_of(weight)
        y = self._new(packed.shape[1])
        self.program.embed(packed.handle, indices.positions, y.at)
        return y

    def packed_linear(self, x: Symbol, weight: Packed, bias: Tensor | None = None) -> Symbol:
        y = self._new(weight.shape[0])
        self.kept(weight)
        self.program.linear(x.at, weight.handle, 0 if bias is None else self._constant(bias), y.at)
        return y

    def linear(self, x: Symbol, weight: Tensor, bias: Tensor | None = None) -> Symbol:
        return self.packed_linear(x, self.matrix_of(weight), bias)

    def computed_linear(self, x: Symbol, compute: Callable[[], Tensor], bias: Tensor | None = None) -> Symbol:
        """A product with a weight that is computed from others, anew at every :meth:`refresh`."""
        weight = compute()
        if weight.dtype not in FLOATS:
            raise CannotRecord(f"weights in {weight.dtype}")
        packed = Packed.from_floats(weight, self.matrices)
        self._computed.append((compute, packed))
        return self.packed_linear(x, packed, bias)

    def matrix_of(self, weight: Tensor | Packed) -> Packed:
        """A matrix in the kernels' layout; the same one for the same weight."""
        if isinstance(weight, Packed):
            return weight
        for known, derived in self._derived:
            if known is weight and isinstance(derived, Packed):
                return derived
        if weight.dtype not in FLOATS:
            raise CannotRecord(f"weights in {weight.dtype}")
        self._check(weight)
        packed: Packed = self.kept(Packed.from_floats(weight, self.matrices))
        self._derived.append((weight, packed))
        return packed

    def rms_norm(self, x: Symbol, weight: Tensor, eps: float) -> Symbol:
        y, size = self._new(*x.shape[1:]), x.shape[-1]
        self.program.rms_norm(x.at, self._constant(weight), eps, x.width // size, size, y.at)
        return y

    def layer_norm(self, x: Symbol, weight: Tensor, bias: Tensor | None, eps: float) -> Symbol:
        y, size = self._new(*x.shape[1:]), x.shape[-1]
        bias_at = 0 if bias is None else self._constant(bias)
        self.program.layer_norm(x.at, self._constant(weight), bias_at, eps, x.width // size, size, y.at)
        return y

    def rotary_angles(self, positions: Indices, inverse: Tensor, scale: float, dtype: Any) -> tuple[Symbol, Symbol]:
        features = len(inverse)
        cos, sin = self._new(2 * features), self._new(2 * features)
        self.program.angles(self._constant(inverse), features, scale, cos.at, sin.at)
        return cos, sin

    def apply_rope(self, x: Symbol, cos: Symbol, sin: Symbol) -> Symbol:
        y = self._new(*x.shape[1:])
        self.program.rope(x.at, cos.at, sin.at, *x.shape[1:], cos.width, y.at)
        return y

    def plain_activation(self, x: Symbol, name: str) -> Symbol:
        y = self._new(*x.shape[1:])
        self.program.unary(UNARY[name], x.at, x.width, y.at)
        return y

    def gated_activation(self, gate: Symbol, up: Symbol, name: str) -> Symbol:
        y = self._new(*up.shape[1:])
        self.program.gated(UNARY[name], gate.at, up.at, up.width, y.at)
        return y

    def soft_cap(self, x: Symbol, cap: float) -> Symbol:
        y = self._new(*x.shape[1:])
        self.program.softcap(x.at, cap, x.width, y.at)
        return y

    # what symbols do themselves

    def add(self, a: Symbol, b: Symbol) -> Symbol:
        y = self._new(*a.shape[1:])
        self.program.add(a.at, b.at, 1.0, a.width, y.at)
        return y

    def scale(self, x: Symbol, factor: float) -> Symbol:
        y = self._new(*x.shape[1:])
        self.program.scale(x.at, factor, x.width, y.at)
        return y

    def paged_attention(
        self,
        q: Symbol,
        k: Symbol,
        v: Symbol,
        keys: Tensor,
        values: Tensor,
        block_size: int,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
        alibi_H: Tensor | None,
    ) -> Symbol:
        """Write k and v to the pass's slots of a layer's cache and attend; layout in ``native/src/attention.inl``."""
        heads, head_dim = q.shape[1:]
        if heads > MOST_SHARING * k.shape[1]:
            raise CannotRecord(f"{heads} heads over {k.shape[1]}: more than {MOST_SHARING} share one")
        if alibi_H is not None:
            raise CannotRecord("attention with ALiBi")
        if head_dim % 16:
            raise CannotRecord(f"attention heads of {head_dim} features, which is no multiple of 16")
        y = self._new(heads, head_dim)
        stored = CACHES.index(keys.dtype)
        where = (self.kept(keys).data_ptr(), self.kept(values).data_ptr(), stored, block_size, k.shape[1], head_dim)
        self.program.attend(q.at, k.at, v.at, *where, heads, scale, softcap or 0.0, window or 0, y.at)
        return y
