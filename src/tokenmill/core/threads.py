"""How torch's threads meet the cores.

Measured on a 2-core virtual machine with Linux 6.18: the scheduler keeps both threads of one process on one core, and
every parallel operation waits for its second half. A 512-token pass of a 135M model took 8.5 s with two free threads,
1.95 s with one, 1.05 s with two bound to a core each. torch's tuning guide asks for the same binding on large machines.

OpenMP's threads wait for their next piece of work by spinning, for milliseconds, on cores that our own pool needs: a
training step of the compiled kernels and torch's products in turn is a tenth faster when they give up sooner. Huge
pages for torch's large tensors save it four of five page faults, another twentieth.
"""

from __future__ import annotations

import os
import sys


def _allowed() -> tuple[int, ...]:
    if not hasattr(os, "sched_getaffinity"):
        return ()
    seen = sorted(os.sched_getaffinity(0))
    # Where torch came first, OpenMP may have bound this thread, so what it is allowed says nothing of the process
    bound = len(seen) == 1 and "torch" in sys.modules and os.environ.get("OMP_PROC_BIND", "false") != "false"
    return tuple(range(os.cpu_count() or 1)) if bound else tuple(seen)


_ALLOWED = _allowed()  # at import: later OpenMP binds the first thread to a core, and all new ones inherit that


SETTINGS = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores", "GOMP_SPINCOUNT": "1000", "THP_MEM_ALLOC_ENABLE": "1"}


def bind_threads() -> None:
    """Ask OpenMP to bind one thread to each core, and the rest of :data:`SETTINGS`; for programs of ours, before torch
    is imported.

    A person who sets any of these variables has decided already, and a library must not decide for its host.
    """
    if "torch" in sys.modules or any(name in os.environ for name in ("OMP_PROC_BIND", "OMP_PLACES", "OMP_NUM_THREADS")):
        return
    os.environ.update(SETTINGS)


def allowed_cores() -> tuple[int, ...]:
    """The numbers of the cores that this process may use; empty where the system does not say."""
    return _ALLOWED
