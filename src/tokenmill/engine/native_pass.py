"""The paged cache and the pass over it on the native kernels: the fast twin of ``runner.py``.

The model is recorded once (``ops/program.py``); a pass then is one native call, whatever its mix of prompts and
decoding. Cache layout: ``native/src/attention.inl``; blocks are multiples of 32 positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenmill.core.errors import UsageError
from tokenmill.core.log import get_logger
from tokenmill.engine.scheduler import Work
from tokenmill.nn.context import How
from tokenmill.nn.decoder import Decoder
from tokenmill.nn.embedding import Embedding
from tokenmill.nn.linear import Linear
from tokenmill.nn.packed import PackedEmbedding, PackedLinear
from tokenmill.ops.packed import FLOATS, kernels
from tokenmill.ops.program import CannotRecord, Indices, Recorder, Symbol

log = get_logger(__name__)
BLOCK_SIZE = 32
MAX_ROWS = 512  # tokens of a pass; more would not be faster, and each intermediate result has room for them
SCALE_BYTES = 4  # an int8 cache has a float32 scale for each head and position, beside its codes
_Packed = (PackedLinear, PackedEmbedding)


def cache_dtype(
    model: nn.Module, wanted: torch.dtype | None = None, matrices: torch.dtype | None = None
) -> torch.dtype:
    """What is wanted, else float32 for float32 weights, so that they compute what torch computes; else bfloat16, half
    the memory to read. ``matrices``: what plain matrices become."""
    if wanted is not None:
        return wanted
    kinds = {module.packed.kind for module in model.modules() if isinstance(module, _Packed)}
    plain = {matrices or module.weight.dtype for module in model.modules() if type(module) is Linear}
    kinds |= {FLOATS.get(dtype, "") for dtype in plain}
    return torch.float32 if kinds <= {"F32"} else torch.bfloat16


@contextmanager
def threads_to_itself() -> Iterator[None]:
    """torch computes the little that is left to it with one thread of the caller's.

    The others would spin for a while after each of its operations, on the cores that the kernels are about to use: a
    step of the default model took 28 ms with them, 17 ms without, in one run.
    """
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Recording:
    """The attention context while a model is recorded."""

    def __init__(self, recorder: Recorder, layers: list[tuple[Tensor, Tensor]], block_size: int) -> None:
        self.recorder, self.layers, self.block_size = recorder, layers, block_size
        self.positions_T = self.lengths_T = Indices(recorder, positions=True)

    def attend(self, layer: int, q: Symbol, k: Symbol, v: Symbol, how: How) -> Symbol:
        return self.recorder.paged_attention(q, k, v, *self.layers[layer], self.block_size, **how)


class NativePass:
    """A model with packed weights, recorded, and its cache. CannotRecord where the model does what no kernel does.

    ``trained``: plain weights are packed beside the model (as ``matrices``, by default in their own type), those of
    the adapters that are on now included, and again by :meth:`refresh`; what is frozen only once.
    """

    def __init__(
        self,
        model: Decoder,
        num_blocks: int,
        block_size: int,
        *,
        deterministic: bool = False,
        cache: torch.dtype | None = None,
        trained: bool = False,
        matrices: torch.dtype | None = None,
    ) -> None:
        if block_size % BLOCK_SIZE:
            raise CannotRecord(f"blocks of {block_size} positions, no multiple of {BLOCK_SIZE}")
        adapted = not trained and any(hasattr(module, "adapters") for module in model.modules())
        if model.prompt is not None or adapted:
            raise CannotRecord("adapters, which may be switched at any time")
        self.model, self.block_size, self._deterministic = model, block_size, deterministic
        dtype = cache_dtype(model, cache, matrices)
        extra = SCALE_BYTES if dtype == torch.int8 else 0

        def room(heads: int, size: int) -> Tensor:
            return torch.empty(num_blocks * block_size * heads * (size + extra), dtype=dtype)

        parts = [layer.attention for layer in model.config.layers]
        layers = [(room(a.num_kv_heads, a.head_dim), room(a.num_kv_heads, a.head_dim)) for a in parts]
        # an adapter beside 16-bit weights multiplies in their type, as it does when it is trained
        recorder = Recorder(MAX_ROWS, matrices or (model.dtype if trained else None))
        context = _Recording(recorder, layers, block_size)
        try:
            with torch.enable_grad():  # what is computed from trained weights shows it
                hidden: object = model.hidden(Indices(recorder, positions=False), context)  # type: ignore[arg-type]
        except (AttributeError, TypeError, KeyError) as error:  # what a symbol cannot do
            raise CannotRecord(str(error)) from error
        if not isinstance(hidden, Symbol):
            raise CannotRecord("the pass did not end in a hidden state")
        self._recorder, self._program, self._rows_TC = recorder, recorder.program, rows_of(hidden)
        self._head, self._scores_TV = None, None
        head: nn.Module = model.embed if model.head is None else model.head
        if isinstance(head, _Packed) or (trained and type(head) in (Embedding, Linear)):
            self._head = recorder.begin()
            logits: object = model.logits(recorder.pick(hidden))  # type: ignore[arg-type]
            self._scores_TV = rows_of(cast(Symbol, logits))

    def refresh(self) -> None:
        """Take over the weights that were trained since."""
        self._recorder.refresh()

    def logits(self, hidden_TC: Tensor, wanted: list[int]) -> Tensor:
        """As :meth:`Decoder.logits`, of the same weights as the pass; valid until the next call."""
        if self._head is None or self._scores_TV is None:
            return self.model.logits(hidden_TC[wanted])
        here = kernels()
        self._head.run_pass(here.pool, here.kernels, wanted, [], [], 1, self._deterministic)
        return self._scores_TV[: len(wanted)]

    def hidden(self, work: Sequence[Work]) -> Tensor:
        """Hidden states [T, C] of the scheduled tokens; valid until the next pass."""
        here = kernels()
        tokens = [token for p in work for token in p.sequence.tokens(p.start, p.start + p.count)]
        spans = [(piece.start, piece.count) for piece in work]
        tables = [piece.sequence.blocks for piece in work]
        self._program.run_pass(here.pool, here.kernels, tokens, spans, tables, self.block_size, self._deterministic)
        return self._rows_TC[: len(tokens)]


def rows_of(symbol: Symbol) -> Tensor:
    """The memory that a program computes a symbol in, [MAX_ROWS, width]."""
    return symbol.buffer.memory.view(MAX_ROWS, symbol.width)


def record(
    model: Decoder,
    num_blocks: int,
    block_size: int,
    *,
    cache: torch.dtype | None = None,
    needed: bool = True,
    **how: Any,
) -> NativePass | None:
    """A native pass over a packed model, or None (and the reason in the log) where it cannot be recorded.

    ``how``: as :class:`NativePass` takes it. UsageError where an int8 cache is wanted and there is no native pass to
    read it; not where one is not ``needed`` for that, since the model has scales for torch.
    """
    try:
        return NativePass(model, num_blocks, block_size, cache=cache, **how)
    except CannotRecord as reason:
        if cache == torch.int8 and needed:
            raise no_int8(str(reason)) from None
        log.info("this model runs on torch: %s", reason)
        return None


def no_int8(reason: str) -> UsageError:
    """Why a cache of int8 is refused."""
    return UsageError(f"an int8 cache needs the native kernels, and this model runs on torch: {reason}")
