"""What is seen of the machine, on this one and on made-up ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenmill.core import machine


def test_this_machine() -> None:
    seen = machine.probe_machine()
    assert seen.cores >= 1
    assert seen.system
    assert seen.memory_total is None or 0 < (seen.memory_available or 0) <= seen.memory_total


def test_a_container_limit_wins_over_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/cpuinfo": "processor : 0\nmodel name\t: A CPU\n",
        "/proc/meminfo": "MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n",
        "/sys/fs/cgroup/memory.max": "4096000000\n",
    }
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"fpu", "avx512f", "avx2", "avx512f_x"}))
    seen = machine.probe_machine()
    assert (seen.cpu, seen.features) == ("A CPU", ("avx2", "avx512f"))
    assert (seen.memory_total, seen.memory_available) == (4_096_000_000, 4_096_000_000)
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    seen = machine.probe_machine()
    assert (seen.memory_total, seen.memory_available) == (16_000_000 * 1024, 8_000_000 * 1024)


def test_where_nothing_is_told_nothing_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: "")
    monkeypatch.setattr(machine, "cpu_flags", frozenset)
    seen = machine.probe_machine()
    assert (seen.features, seen.memory_total, seen.memory_available) == ((), None, None)


def test_free_disk_of_a_folder_to_be(tmp_path: Path) -> None:
    assert machine.free_disk(tmp_path / "not" / "yet") > 0


def test_free_memory_is_given_back() -> None:
    """Holes of the heap: every second of many small buffers is freed, and the process shrinks."""
    import ctypes
    import sys

    import pytest

    from tokenmill.core.allocator import give_back_free_memory
    from tokenmill.core.machine import process_memory

    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("glibc only")
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    size = 64 * 1024
    buffers = [libc.malloc(size) for _ in range(1000)]
    for buffer in buffers:
        libc.memset(buffer, 1, size)
    for buffer in buffers[::2]:
        libc.free(buffer)
    before = process_memory()[0]
    give_back_free_memory()
    after = process_memory()[0]
    for buffer in buffers[1::2]:
        libc.free(buffer)
    assert before - after > 500 * size * 0.5
