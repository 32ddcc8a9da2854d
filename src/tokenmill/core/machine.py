"""What this machine has: processor, cores, memory, disk. Standard library only; no torch, no GPU.

A figure that the operating system does not give is None (or an empty string), never a guess. Memory honours a
container's limit (cgroup v2 and v1), because that is what ends a process.
"""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# What the CPU kernels can use, in the names of /proc/cpuinfo (x86, then ARM), from plain to special.
# fmt: off
FEATURES = (
    "avx2", "f16c", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8",
    "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)
# fmt: on


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets of this CPU as Linux names them; empty where they cannot be read."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return frozenset()
    for line in info.read_text(errors="replace").splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


@dataclass(frozen=True)
class Machine:
    """One machine as seen by this process. Memory in bytes. `cores` are those that this thread may run on: ask before
    torch is imported, which may bind it (see ``threads``)."""

    system: str
    cpu: str
    features: tuple[str, ...]
    cores: int
    memory_total: int | None
    memory_available: int | None


def probe_machine() -> Machine:
    """Look at this machine; takes a millisecond."""
    cpuinfo = _read("/proc/cpuinfo")
    flags = cpu_flags()
    meminfo = _read("/proc/meminfo")
    total, available = _kilobytes(meminfo, "MemTotal"), _kilobytes(meminfo, "MemAvailable")
    limit = _container_limit()
    if limit is not None and (total is None or limit < total):
        total, available = limit, min(limit, available or limit)
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=_field(cpuinfo, "model name") or platform.processor() or platform.machine(),
        features=tuple(feature for feature in FEATURES if feature in flags),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_total=total,
        memory_available=available,
    )


def free_disk(path: Path) -> int:
    """Free bytes on the disk that `path` is on, or would be on."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def process_memory() -> tuple[int, int]:
    """Bytes of memory that this process holds now, and the most that it has held.

    From /proc where there is one: what ``getrusage`` calls the peak is there inherited from the process that started
    this one. Elsewhere only the peak is known and stands for both.
    """
    status = _read("/proc/self/status")
    now, peak = _kilobytes(status, "VmRSS"), _kilobytes(status, "VmHWM")
    if now is None or peak is None:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
        now = peak
    return now, peak


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(text: str, name: str) -> str:
    """The first ``name : value`` of a /proc file."""
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == name:
            return value.strip()
    return ""


def _kilobytes(meminfo: str, name: str) -> int | None:
    value = _field(meminfo, name).removesuffix("kB").strip()
    return int(value) * 1024 if value.isdigit() else None


def _container_limit() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(path).strip()
        if text.isdigit():
            return int(text)
    return None
