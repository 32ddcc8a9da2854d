"""The engine: a scheduler, a paged cache and a model, put together. Token ids in, token ids out.

Contract: :meth:`Engine.add` may be called between any two steps; :meth:`Engine.step` runs one pass and returns the
tokens it made; a request ends with its last Step, or silently when its reader called ``finish``. What goes wrong with
one request ends that request. Whenever nothing is left to do, the blocks are counted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Many
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from tokenmill.core.device import free_memory
from tokenmill.core.errors import TokenmillError, UsageError, did_you_mean
from tokenmill.core.log import get_logger
from tokenmill.engine import native_pass
from tokenmill.engine.block_pool import BlockPool
from tokenmill.engine.generate import check_request, next_step
from tokenmill.engine.pace import Pace
from tokenmill.engine.request import Request, Step
from tokenmill.engine.runner import SCALED, TorchPass, run
from tokenmill.engine.sampler import Sampler
from tokenmill.engine.scheduler import Scheduler, Work
from tokenmill.models.packing import can_pack
from tokenmill.nn.cost import kv_bytes_per_token
from tokenmill.nn.decoder import Decoder
from tokenmill.nn.linear import Linear, LinearLayer
from tokenmill.nn.packed import PackedLinear, is_packed
from tokenmill.ops.batch_invariant import batch_invariant
from tokenmill.ops.native import why_not

log = get_logger(__name__)
BLOCK_SIZE = 16
CACHE_SHARE = 0.4  # of the memory that is free when the engine starts, at most, goes to the cache


class PassError(TokenmillError):
    """The model could not compute a request's next token; the message has the reason."""


CACHE_DTYPES = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
"""How keys and values are stored. ``auto``: as the model's folder asks for (``quantize --kv-cache``); without that as
the model computes, and beside quantised weights ``bf16``."""


def cache_dtype_of(name: str) -> torch.dtype | None:
    """The type that a name asks for, None for ``auto``; UsageError for an unknown one."""
    if name not in CACHE_DTYPES:
        near = did_you_mean(name, CACHE_DTYPES)
        raise UsageError(f"kv_cache_dtype {name!r} is not known{near}; known: {', '.join(CACHE_DTYPES)}")
    return CACHE_DTYPES[name]


def folders_cache(model: Decoder, packed: bool) -> torch.dtype | None:
    """The type of the cache that a model's folder asks for, None where it asks for none or nobody here has it."""
    scales = model.cache_scales
    if scales is None:
        return None
    if packed and scales.kind == "fp8":
        log.info("the folder's scales are of an FP8 cache, which the kernels do not have: bfloat16 keeps more")
        return None
    return next(dtype for dtype, kind in SCALED.items() if kind == scales.kind)


def cache_blocks(model: Decoder, tokens: int, block_size: int, itemsize: float) -> int:
    """Blocks for ``tokens`` positions, or as many as a share of the free memory holds: shrunk, never refused.

    ``itemsize``: bytes of a cached number, its part of a scale included.
    """
    block_bytes = kv_bytes_per_token(model.config, itemsize) * block_size
    wanted = -(-tokens // block_size)
    free = free_memory(model.device)
    fitting = wanted if free is None else max(1, int(free * CACHE_SHARE / block_bytes))
    blocks = min(wanted, fitting)
    shrunk = f", shrunk from {wanted * block_size} to fit the memory" if blocks < wanted else ""
    log.info("KV cache: %d tokens, %.0f MB%s", blocks * block_size, blocks * block_bytes / 1e6, shrunk)
    return blocks


def cached_bytes(model: Decoder, dtype: torch.dtype) -> float:
    """Bytes of a cached number with its part of a scale, at the smallest head that the model has."""
    if dtype != torch.int8:
        return dtype.itemsize
    return 1 + native_pass.SCALE_BYTES / min(layer.attention.head_dim for layer in model.config.layers)


def check_deterministic(model: Decoder) -> None:
    """Raises UsageError where layers have kernels that ``batch_invariant`` does not reach."""
    others = {
        type(m).__name__
        for m in model.modules()
        if isinstance(m, LinearLayer) and type(m) not in (Linear, PackedLinear)
    }
    if others:
        raise UsageError(
            f"deterministic needs plain weights; this model has layers of kind {', '.join(sorted(others))}"
        )


class Engine:
    """Serves many requests with one model. Not thread-safe: one thread owns it.

    ``deterministic``: a request's logits are the same to the last bit whatever else is in the batch, at the price that
    ``ops/batch_invariant.py`` tells. ``kv_cache_dtype``: see :data:`CACHE_DTYPES`. ``trained``: the model is trained
    between steps, and :meth:`refresh` says when; its adapters stay as they are on now. Where the native kernels can
    compute it, they do so with its weights in their own layout, as ``matrices`` (default: the weights' own type).
    """

    def __init__(
        self,
        model: Decoder,
        *,
        max_length: int | None = None,
        num_blocks: int | None = None,
        block_size: int | None = None,
        max_tokens_per_step: int = 2048,
        max_running: int = 256,
        max_waiting: int = 1024,
        prefix_caching: bool = True,
        deterministic: bool = False,
        kv_cache_dtype: str = "auto",
        trained: bool = False,
        matrices: torch.dtype | None = None,
    ) -> None:
        self.model = model
        cache = cache_dtype_of(kv_cache_dtype)
        self._how: Callable[[], AbstractContextManager[None]] = nullcontext
        if deterministic:
            check_deterministic(model)
            self._how = batch_invariant
            # where angles depend on the prompt's length, a cached beginning was computed for another length
            prefix_caching = prefix_caching and not any(rotary.by_length for rotary in model.rotaries.values())
        wanted = max_length or model.config.max_position
        packed = is_packed(model) or (trained and can_pack(model, model.device))
        block_size = block_size or (native_pass.BLOCK_SIZE if packed else BLOCK_SIZE)
        if kv_cache_dtype == "auto":
            cache = folders_cache(model, packed)
        scaled = model.cache_scales is not None and model.cache_scales.kind == "int8"
        if cache == torch.int8 and not packed and not scaled:
            raise native_pass.no_int8(why_not() or "its weights are not in the kernels' layout")
        stored = native_pass.cache_dtype(model, cache, matrices) if packed else cache or model.dtype
        blocks = num_blocks or cache_blocks(model, max(2 * wanted, 16384), block_size, cached_bytes(model, stored))
        self.pool = BlockPool(blocks, block_size)
        recorded = None
        if packed:
            how = {"deterministic": deterministic, "trained": trained, "matrices": matrices}
            recorded = native_pass.record(model, blocks, block_size, cache=cache, needed=not scaled, **how)
        if recorded is not None:
            max_tokens_per_step = min(max_tokens_per_step, native_pass.MAX_ROWS)
        self.scheduler = Scheduler(
            self.pool,
            max_tokens_per_step=max_tokens_per_step,
            max_running=max_running,
            max_waiting=max_waiting,
            prefix_caching=prefix_caching,
        )
        self.max_length = min(wanted, self.scheduler.capacity)
        self._passes = recorded or TorchPass(model, blocks, block_size, cache)
        self._samplers: dict[Request, Sampler] = {}
        self._unread: dict[Request, deque[Step]] = {}

    def keep_pace(self) -> None:
        """From now on prompts are read in chunks that leave those who read along their pace (see ``pace``)."""
        self.scheduler.pace = Pace()

    def refresh(self) -> None:
        """The weights have changed: compute with the new ones, and forget what the old ones computed."""
        self.check_idle()
        self.pool.clear_cache()
        self._passes.refresh()

    @property
    def native(self) -> bool:
        """Whether the native kernels run the model."""
        return not isinstance(self._passes, TorchPass)

    @property
    def idle(self) -> bool:
        return not self.scheduler.running and not self.scheduler.waiting

    def add(self, request: Request) -> None:
        """Check and queue a request; raises what is wrong with it, or that the queue is full."""
        check_request(request, self.model, self.max_length)
        if request.params.max_tokens == 0 and request.unscored is None:
            request.finish("length")
            return
        self.scheduler.add(request)
        self._samplers[request] = Sampler(request, self.model.device)

    def step(self) -> list[Step]:
        """One pass: schedule, compute, draw. Returns one Step for each request that got a token or an error."""
        with nullcontext() if isinstance(self._passes, TorchPass) else native_pass.threads_to_itself():
            return self._step()

    def _step(self) -> list[Step]:
        before = [s.request for s in (*self.scheduler.running, *self.scheduler.waiting)]
        started = time.monotonic()
        work = self.scheduler.schedule(started)
        decoding = sum(piece.sequence.decoding for piece in work)
        late = [r for r in before if r.error is not None and r in self._samplers]
        steps = [Step(r, None, None, "error") for r in late]
        if work:
            for piece, logits_V in self._compute(work):
                request = piece.sequence.request
                if isinstance(logits_V, TokenmillError):
                    request.error = logits_V
                    request.finish("error")
                    steps.append(Step(request, None, None, "error"))
                elif request.params.max_tokens == 0:  # only the prompt's scores were wanted
                    request.finish("length")
                    steps.append(Step(request, None, None, request.finish_reason))
                elif request.finish_reason is None:
                    steps.append(next_step(request, self._samplers[request], logits_V, self.max_length))
        if self.scheduler.pace is not None:
            prefill = sum(piece.count for piece in work) - decoding
            self.scheduler.pace.took(time.monotonic() - started, decoding, prefill)
        for request in before:
            if request.finish_reason is not None:
                self._samplers.pop(request, None)
        if not self._samplers:
            self.scheduler.schedule(time.monotonic())  # drops what has just ended
            self.check_idle()
        return steps

    def run(self, requests: Iterable[Request]) -> Iterator[Step]:
        """Check requests now; add them when the first token is asked for, and yield tokens until all have ended.

        Closing the iterator ends them. Several runs may be open at once: whichever is read moves all of them on, and
        each gets its own tokens.
        """
        mine = list(requests)
        for request in mine:
            check_request(request, self.model, self.max_length)
        return self._drain(mine)

    def _drain(self, mine: Many[Request]) -> Iterator[Step]:
        try:
            for request in mine:
                self._unread[request] = deque()
                self.add(request)
            while True:
                for request in mine:
                    while self._unread[request]:
                        yield self._unread[request].popleft()
                if not any(request in self._samplers for request in mine):
                    return
                for step in self.step():
                    if step.request in self._unread:
                        self._unread[step.request].append(step)
        finally:
            for request in mine:
                request.finish("abort")
                self._unread.pop(request, None)

    def _compute(self, work: list[Work]) -> list[tuple[Work, Tensor | TokenmillError]]:
        """Logits of the pieces that reach their end. A pass that fails is repeated piece by piece: who is it?"""
        try:
            with self._how():
                logits = list(run(self.model, self._passes, work))
        except Exception as error:
            if len(work) == 1:
                return [(work[0], PassError(f"the model failed on this request: {error}"))]
            log.warning("a pass of %d requests failed (%s); trying them one by one", len(work), error)
            alone = (result for piece in work for result in self._compute([piece]))
            # the next pass overwrites what the one before returned
            return [(piece, out.clone() if isinstance(out, Tensor) else out) for piece, out in alone]
        self.scheduler.computed(work)
        return list(zip([piece for piece in work if piece.last], logits, strict=True))

    def check_idle(self) -> None:
        """Nothing runs, so nothing may be in use."""
        assert self.idle, "requests are left without a sampler"
        assert self.pool.used == 0, f"{self.pool.used} blocks leaked"
        self.pool.check()
