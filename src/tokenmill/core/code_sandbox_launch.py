"""The process in which foreign Python runs: it gives up its rights, one layer after another, then runs the program.

Started by ``core/code_sandbox.py`` as ``python -I -S`` with one argument of JSON; imports nothing of this package: it
has to start quickly. Linux on x86-64 and aarch64, without privileges:

- ``limits``: memory, processor time, size and number of files (``setrlimit``), no core dumps, killed with its parent;
- ``namespaces``: its own users, network, IPC and host name; there is no network card in there;
- ``landlock``: reads the standard library and its shared libraries, writes into one folder, opens nothing else (since
  Linux 5.13);
- ``seccomp``: a list of allowed system calls. No sockets, no new processes or programs, no signals, no mounts.

Each layer stays for the life of the process, whatever the program does in it, through ctypes too.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import runpy
import struct
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

MEMORY_STATUS, BROKEN_STATUS = 77, 78
"""Exit statuses: out of memory; a layer that was asked for could not be put on."""

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 1, 38, 22

# ---- what a program may ask of the kernel: name -> number on x86-64, on aarch64
Call = tuple[int | None, int | None]
ALLOWED: dict[str, Call] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "newfstatat": (262, 79),
    "stat": (4, None), "lstat": (6, None), "statx": (332, 291), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233), "brk": (12, 214),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "access": (21, None),
    "faccessat": (269, 48), "faccessat2": (439, 439), "pipe": (22, None), "pipe2": (293, 59),
    "select": (23, None), "pselect6": (270, 72), "poll": (7, None), "ppoll": (271, 73),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    "eventfd2": (290, 19), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "time": (201, None), "getpid": (39, 172), "getppid": (110, 173),
    "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176),
    "getegid": (108, 177), "getpgrp": (111, None), "getpgid": (121, 155), "getsid": (124, 156),
    "getgroups": (115, 158), "flock": (73, 32), "fsync": (74, 82), "fdatasync": (75, 83), "ftruncate": (77, 46),
    "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "unlink": (87, None), "unlinkat": (263, 35), "readlink": (89, None),
    "readlinkat": (267, 78), "uname": (63, 160), "getrlimit": (97, 163), "getrusage": (98, 165),
    "sysinfo": (99, 179), "times": (100, 153), "futex": (202, 98), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "exit": (60, 93), "exit_group": (231, 94), "getrandom": (318, 278),
    "set_robust_list": (273, 99), "rseq": (334, 293), "membarrier": (324, 283), "setitimer": (38, 103),
    "getitimer": (36, 102), "alarm": (37, None), "pause": (34, None), "umask": (95, 166),
    "restart_syscall": (219, 128), "getcpu": (309, 168),
}  # fmt: skip
# Allowed with some arguments only; see `_seccomp_program`.
_OPEN: Call = (2, None)
_OPENAT, _CLONE, _CLONE3, _FCNTL, _PRLIMIT = (257, 56), (56, 220), (435, 435), (72, 25), (302, 261)
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_EPERM, _ENOSYS = 1, 38
_O_TRUNC, _CLONE_THREAD = 0o1000, 0x00010000
_RET_KILL, _RET_ERRNO, _RET_ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
"""Offsets in ``struct seccomp_data``; arguments are 8 bytes each, the low half first on both machines."""

Instruction = tuple[int, int, int, int]
"""``struct sock_filter``: code, jump if true, jump if false, value."""


def seccomp_program(machine: str) -> list[Instruction]:
    """The filter for x86_64 or aarch64: what is not in the list fails as "operation not permitted"."""
    column = 0 if machine == "x86_64" else 1
    deny, allow = (_RETURN, 0, 0, _RET_ERRNO | _EPERM), (_RETURN, 0, 0, _RET_ALLOW)
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _RET_KILL),  # a 32-bit call: the numbers below mean something else there
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_AT_LEAST, 0, 1, 0x40000000),  # x32, the same
        (_RETURN, 0, 0, _RET_KILL),
    ]

    def when(call: Call, then: list[Instruction]) -> None:
        if (number := call[column]) is not None:
            code.extend([(_JUMP_EQUAL, 0, len(then), number), *then])

    def low(argument: int) -> Instruction:
        return (_LOAD, 0, 0, _ARGUMENTS + 8 * argument)

    # a C library that hears "no such call" of clone3 starts its threads with clone, whose flags can be read
    when(_CLONE3, [(_RETURN, 0, 0, _RET_ERRNO | _ENOSYS)])
    when(_CLONE, [low(0), (_AND, 0, 0, _CLONE_THREAD), (_JUMP_EQUAL, 0, 1, 0), deny, allow])
    # Landlock knows truncation since Linux 6.2 only: emptying a file that may be read must not pass before that
    for opening, flags in ((_OPEN, 1), (_OPENAT, 2)):
        truncates = [low(flags), (_AND, 0, 0, _O_TRUNC), (_JUMP_EQUAL, 3, 0, 0)]
        read_only = [low(flags), (_AND, 0, 0, 3), (_JUMP_EQUAL, 1, 0, 0)]
        when(opening, [*truncates, *read_only, allow, deny])
    # duplicates, flags and locks; not F_SETOWN and F_SETSIG, which make the kernel send signals to others
    commands: list[Instruction] = [low(1)]
    for command in (*range(8), 1030):
        commands += [(_JUMP_EQUAL, 0, 1, command), allow]
    when(_FCNTL, [*commands, deny])
    when(_PRLIMIT, [low(0), (_JUMP_EQUAL, 0, 1, 0), allow, deny])  # its own limits, nobody else's
    for call in ALLOWED.values():
        when(call, [allow])
    return [*code, deny]


def put_on_seccomp() -> None:
    """OSError where the kernel has none, or the machine is not one of the two."""
    machine = os.uname().machine
    if machine not in _AUDIT_ARCH:
        raise OSError(f"no list of system calls for {machine}")
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in seccomp_program(machine))
    buffer = ctypes.create_string_buffer(packed, len(packed))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    program = Program(len(packed) // 8, ctypes.addressof(buffer))
    _check(_libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0))


# ---- files
_READ_FILE, _READ_DIR, _WRITE_FILE, _REMOVE_FILE, _MAKE_REG, _TRUNCATE = 1 << 2, 1 << 3, 1 << 1, 1 << 5, 1 << 8, 1 << 14
_RIGHTS_OF_ABI = (0, 13, 14, 15, 15, 16)
"""Number of rights over files that each version of Landlock knows."""


def put_on_landlock(readable: Iterable[str], folder: str | None) -> None:
    """Files under `readable` may be read, those in `folder` written too; OSError where the kernel has no Landlock."""
    create, add, restrict = 444, 445, 446
    abi = _check(_libc.syscall(create, None, ctypes.c_size_t(0), 1))
    handled = (1 << _RIGHTS_OF_ABI[min(abi, 5)]) - 1
    # network rights since 4: none is granted; since 6: no signals and abstract sockets to those outside
    attributes = struct.pack("QQQ", handled, 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    rules = _check(_libc.syscall(create, attributes, ctypes.c_size_t(size), 0))
    allowed = [(path, _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0)) for path in readable]
    allowed.append(("/dev/null", _READ_FILE | _WRITE_FILE))
    if folder is not None:
        allowed.append((folder, _READ_FILE | _READ_DIR | _WRITE_FILE | _REMOVE_FILE | _MAKE_REG | _TRUNCATE))
    for path, rights in allowed:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        _check(_libc.syscall(add, rules, 1, struct.pack("=Qi", rights & handled, handle), 0))
        os.close(handle)
    _check(_libc.syscall(restrict, rules, 0))
    os.close(rules)


def libraries() -> list[str]:
    """Folders of what Python may still load: its standard library, and where its shared libraries lie."""
    found = {path for path in sys.path if os.path.exists(path)}
    with open("/proc/self/maps", encoding="utf-8") as maps:
        mapped = {line.split(maxsplit=5)[5].strip() for line in maps if line.count("/")}
    found |= {os.path.dirname(path) for path in mapped if ".so" in os.path.basename(path) and os.path.exists(path)}
    return sorted([*found, *filter(os.path.exists, ("/etc/ld.so.cache", "/dev/urandom"))])


# ---- the rest
def put_on_limits(*, memory: int, cpu_s: int, file_bytes: int, files: int) -> None:
    """Bytes of address space, seconds of processor, bytes a file, open files; the end with the parent's."""
    limits = (
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_CPU, cpu_s, cpu_s + 1),
        (resource.RLIMIT_FSIZE, file_bytes, file_bytes),
        (resource.RLIMIT_NOFILE, files, files),
        (resource.RLIMIT_CORE, 0, 0),
    )
    for limit, soft, hard in limits:
        most = resource.getrlimit(limit)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(limit, (soft, hard))
    if sys.platform == "linux":
        _check(_libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0))


def put_on_namespaces() -> None:
    """Users, network, IPC, host name of its own; OSError where the machine does not let everyone make them."""
    _check(_libc.unshare(0x10000000 | 0x40000000 | 0x08000000 | 0x04000000))


def drop_privileges() -> None:
    """No program gives new rights, and those that the process has (started by root, or first in its namespace) go."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check(_libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def layers(folder: str | None, program: str | None) -> dict[str, Callable[[], None]]:
    """Name -> how it is put on, in the order in which it has to be done; ``limits`` are always on."""
    readable = [*libraries(), *([program] if program else [])]
    return {
        "namespaces": put_on_namespaces,
        "privileges": drop_privileges,
        "landlock": lambda: put_on_landlock(readable, folder),
        "seccomp": put_on_seccomp,
    }


def probe() -> dict[str, str | None]:
    """Every layer with None where it can be put on, else the reason."""
    if sys.platform != "linux":
        return dict.fromkeys(("namespaces", "privileges", "landlock", "seccomp"), f"there is none on {sys.platform}")
    found: dict[str, str | None] = {}
    for name, put_on in layers(None, None).items():
        try:
            put_on()
            found[name] = None
        except (OSError, AttributeError) as error:
            found[name] = str(error)
    return found


def run(order: dict[str, Any]) -> int:
    """Give up what `order` says, tell the parent so, run the program; the exit status."""
    try:
        put_on_limits(**order["limits"])
        os.chdir(order["folder"])
        steps = layers(order["folder"], order["program"]) if order["layers"] else {}
        for name in order["layers"]:
            steps[name]()
        os.write(order["ready"], b"r")
        os.close(order["ready"])
    except Exception:
        traceback.print_exc()
        return BROKEN_STATUS
    try:
        runpy.run_path(order["program"], run_name="__main__")
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != order["program"]:
            trace = trace.tb_next  # what is above the program is this file's affair
        traceback.print_exception(type(error), error, trace)
        return MEMORY_STATUS if isinstance(error, MemoryError) else 1
    return 0


def main() -> None:
    """The order is JSON: null asks what this machine has."""
    order = json.loads(sys.argv[1])
    if order is None:
        print(json.dumps(probe()))
    else:
        del sys.argv[1:]
        sys.exit(run(order))


if __name__ == "__main__":
    main()
