"""Attacks on the sandbox for foreign Python: each tries what would harm the machine and prints what it got."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tokenmill.core import code_sandbox
from tokenmill.core import code_sandbox_launch as launch
from tokenmill.core.code_sandbox import Isolation, isolation, run_code, run_tests
from tokenmill.core.errors import UsageError

# Tests of attacks need the isolation; where a machine has none, the refusal below is what holds.
isolated = pytest.mark.skipif(not isolation().enough, reason="this machine cannot isolate")

TRY = """
def attempt(name, action):
    try:
        print("BREACH", name, repr(action())[:80])
    except (PermissionError, FileNotFoundError, BlockingIOError) as error:
        pass
"""


def breaches(body: str, **options: object) -> str:
    """Output of a program that calls ``attempt(name, action)``; a line for each that came through."""
    result = run_code(f"{TRY}\n{body}\nprint('end')", **options)  # type: ignore[arg-type]
    assert result.status == "ok", result.stderr
    assert result.stdout.endswith("end\n")
    return result.stdout.removesuffix("end\n")


def test_a_program_runs() -> None:
    source = "import json, sys\nprint(json.dumps(sorted(sys.stdin.read().split())))\nprint('é', file=sys.stderr)"
    result = run_code(source, stdin="b a")
    assert (result.status, result.stdout, result.stderr) == ("ok", '["a", "b"]\n', "é\n")
    assert 0 < result.seconds < 5


@isolated
def test_its_folder_is_empty_and_its_own() -> None:
    body = "open('x', 'w').write('here'); print(open('x').read(), os.listdir()); os.remove('x')"
    assert run_code(f"import os; print(os.listdir()); {body}").stdout == "[]\nhere ['x']\n"


@pytest.mark.parametrize(
    ("source", "status", "said"),
    [
        ("import sys; sys.exit(0)", "ok", ""),
        ("import sys; sys.exit(3)", "error", ""),
        (f"import sys; sys.exit({launch.BROKEN_STATUS})", "error", ""),
        ("def f():\n    raise ValueError('no')\nf()", "error", "ValueError: no"),
        ("x = (", "error", "SyntaxError"),
        ("import os; os.abort()", "error", ""),
        ("def f(): f()\nf()", "error", "RecursionError"),
        ("x = [0] * 10**10", "memory", "MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", "memory", "MemoryError"),
    ],
)
def test_ends(source: str, status: str, said: str) -> None:
    result = run_code(source, memory_mb=128)
    assert result.status == status
    assert said in result.stderr
    assert "code_sandbox_launch" not in result.stderr or status == "memory" or "SyntaxError" in said


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import signal\nfor n in (1, 2, 3, 13, 14, 15, 24): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
        "import os, time; os.close(1); os.close(2); time.sleep(60)",
    ],
    ids=["loop", "sleep", "deaf", "silent"],
)
def test_time_is_bounded(source: str) -> None:
    begin = time.monotonic()
    assert run_code(source, timeout_s=0.6).status == "timeout"
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_is_bounded(stream: str) -> None:
    result = run_code(f"import sys\nwhile True: sys.{stream}.write('x' * 1000)", timeout_s=30)
    assert result.status == "error"
    assert "bytes of output" in result.stderr
    assert len(result.stdout) + len(result.stderr) <= code_sandbox.MOST_OUTPUT + 100


@isolated
def test_disk_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_sandbox, "MOST_DISK", 4 << 20)
    fill = "import time\nfor n in range(9): open(str(n), 'wb').write(bytes(1 << 20))\ntime.sleep(9)"
    assert "in its folder" in run_code(fill, timeout_s=30).stderr
    assert "in its folder" in run_code("n = 0\nwhile True: open(str(n), 'w'); n += 1", timeout_s=30).stderr
    assert "File too large" in run_code("open('x', 'wb').truncate(1 << 40)").stderr


@isolated
def test_no_file_outside(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("told")
    os.chmod(tmp_path, 0o777)
    os.chmod(secret, 0o666)
    body = f"""
import os, sys, ctypes, shutil
secret = {str(secret)!r}
for name in (secret, "/etc/passwd", "/etc/shadow", "/proc/self/environ", "/proc/self/mem", "/proc/1/cmdline",
             f"/proc/{{os.getppid()}}/environ", "/dev/mem", {str(Path(code_sandbox.__file__))!r}, "../../x",
             "/proc/self/root" + secret, "/proc/self/cwd/../../../etc/hostname"):
    attempt(name, lambda: open(name).read())
    attempt("write " + name, lambda: open(name, "r+"))
    attempt("append " + name, lambda: open(name, "a"))
    attempt("empty " + name, lambda: os.truncate(name, 0))
for name in ("/", "/etc", "/tmp", "..", "../..", {str(tmp_path)!r}, os.path.expanduser("~")):
    attempt("list " + name, lambda: os.listdir(name))
    attempt("make in " + name, lambda: open(os.path.join(name, "planted"), "w"))
attempt("remove", lambda: os.remove(secret))
attempt("rename in", lambda: os.rename(secret, "mine"))
attempt("rename over", lambda: (open("mine", "w"), os.replace("mine", secret)))
attempt("hard link", lambda: os.link(secret, "link"))
attempt("symbolic link", lambda: os.symlink(secret, "symbolic"))
attempt("mode", lambda: os.chmod(secret, 0))
attempt("time", lambda: os.utime(secret))
attempt("owner", lambda: os.chown(secret, 1, 1))
attempt("folder", lambda: os.mkdir("folder"))
attempt("pipe", lambda: os.mkfifo("pipe"))
attempt("root", lambda: os.chroot("."))
attempt("empty the library", lambda: os.open(os.__file__, os.O_RDONLY | os.O_TRUNC))
attempt("change the library", lambda: open(os.__file__, "a"))
"""
    assert breaches(body) == ""
    assert secret.read_text() == "told"
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]
    assert Path(os.__file__).stat().st_size > 0


@isolated
def test_no_network() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.01)
        body = f"""
import socket, ctypes, urllib.request
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, getattr(socket, "AF_NETLINK", 16)):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        attempt("socket", lambda: socket.socket(family, kind))
attempt("pair", lambda: socket.socketpair())
def connect():
    try:
        return socket.create_connection(("127.0.0.1", {server.getsockname()[1]}))
    except OSError as error:
        raise PermissionError from error
attempt("connect", connect)
"""
        assert breaches(body) == ""
        with pytest.raises(TimeoutError):
            server.accept()


@isolated
def test_no_processes_and_no_signals() -> None:
    marker = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    try:
        body = f"""
import os, signal, subprocess, multiprocessing, fcntl, resource, ctypes
attempt("fork", os.fork)
attempt("spawn", lambda: subprocess.run(["true"]))
attempt("posix_spawn", lambda: os.posix_spawn("/bin/true", ["true"], {{}}))
attempt("system", lambda: os.system("true") and (_ for _ in ()).throw(PermissionError()))
attempt("exec", lambda: os.execv("/bin/true", ["true"]))
attempt("pool", lambda: multiprocessing.get_context("fork").Process(target=print).start())
for number in (signal.SIGKILL, signal.SIGTERM, 0):
    for process in (os.getppid(), {marker.pid}, -1, 0):
        attempt("kill", lambda: os.kill(process, number))
attempt("group", lambda: os.killpg(os.getpgid(os.getppid()), 9))
attempt("pidfd", lambda: os.pidfd_open(os.getppid()))
reading, writing = os.pipe()
attempt("owner of a pipe", lambda: fcntl.fcntl(reading, fcntl.F_SETOWN, os.getppid()))
attempt("limits of the parent", lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (0, 0)))
attempt("priority", lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19))
attempt("more memory", lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)) if os.getuid() else 0)
"""
        printed = breaches(body.replace('attempt("more memory"', "#"))
        assert printed == ""
        assert marker.poll() is None
    finally:
        marker.kill()
        marker.wait()


@isolated
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of system calls are those of x86-64")
def test_no_way_round_python() -> None:
    """Through ctypes, numbers and all: what may not be done may not be done."""
    calls = {
        "socket": "41, 2, 1, 0", "fork": "57", "vfork": "58", "clone": "56, 17, 0, 0, 0, 0",
        "execve": "59, b'/bin/true', 0, 0", "ptrace": "101, 16, os.getppid(), 0, 0",
        "open": "2, b'/etc/passwd', 0", "openat": "257, -100, b'/etc/passwd', 0",
        "openat2": "437, -100, b'/etc/passwd', ctypes.byref(how), 24", "mount": "165, b'x', b'/tmp', b'tmpfs', 0, 0",
        "unshare": "272, 0x10000000", "bpf": "321, 0, 0, 0", "io_uring": "425, 8, ctypes.byref(how)",
        "memfd": "319, b'x', 0", "read of the parent": "310, os.getppid(), 0, 0, 0, 0, 0",
        "keys": "248, b'user', b'x', b'y', 1, -1", "shared memory": "29, 0, 4096, 0o1777", "reboot": "169, 0",
        "kexec": "246, 0, 0, 0, 0", "perf": "298, 0, 0, 0, 0, 0", "userfaultfd": "323, 0",
    }  # fmt: skip
    tries = "\n".join(f"attempt({name!r}, lambda: call({arguments}))" for name, arguments in calls.items())
    body = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
how = (ctypes.c_uint64 * 16)()
def call(*arguments):
    result = libc.syscall(*arguments)
    if result < 0:
        raise PermissionError
    return result
{tries}
"""
    assert breaches(body) == ""
    # a system call of another architecture ends the process
    result = run_code("import ctypes; ctypes.CDLL(None).syscall(0x40000000 + 39); print('BREACH')")
    assert (result.status, result.stdout) == ("error", "")


@isolated
def test_threads_are_allowed_and_bounded() -> None:
    add = "import threading\nx = []\nts = [threading.Thread(target=x.append, args=(n,)) for n in range(4)]\n"
    assert (
        run_code(add + "[t.start() for t in ts]; [t.join() for t in ts]; print(sorted(x))").stdout == "[0, 1, 2, 3]\n"
    )
    bomb = "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    assert run_code(bomb, memory_mb=256).status == "error"


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "told")
    with open(__file__, encoding="utf-8") as kept:
        os.set_inheritable(kept.fileno(), True)
        source = "import os\nprint(os.environ)\nfor n in range(3, 32):\n    try: print(n, os.fstat(n))\n"
        source += "    except OSError: pass"
        assert run_code(source).stdout == "environ({'LC_CTYPE': 'C.UTF-8'})\n"


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_sandbox.tempfile, "tempdir", str(tmp_path))
    handles = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: run_code(f"open('x', 'w'); print({n})"), range(6)))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(6)]
    assert list(tmp_path.iterdir()) == []
    assert not handles or len(os.listdir("/proc/self/fd")) == handles


def test_tests_have_to_be_reached() -> None:
    tests = "assert add(2, 3) == 5\nassert add(-1, 1) == 0"
    assert run_tests("def add(a, b):\n    print('adding')\n    return a + b", tests).stdout == "adding\nadding\n"
    assert run_tests("def add(a, b): return a + b", tests).status == "ok"
    for cheat in (
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "def add(a, b): raise SystemExit",
        "'''",
        "if True: (",
    ):
        assert run_tests(cheat, tests).status == "error", cheat
    assert run_tests("def add(a, b): return a - b", tests).status == "error"


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_sandbox, "isolation", lambda: Isolation((), {"landlock": "Function not implemented"}))
    with pytest.raises(UsageError, match="landlock: Function not implemented"):
        run_code("print(1)")
    assert run_code("print(1)", unisolated=True).stdout == "1\n"
    with pytest.raises(UsageError, match="timeout_s"):
        run_code("", timeout_s=0)


def test_a_layer_that_cannot_be_put_on_stops_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = (*code_sandbox.NEEDED, "unheard")
    monkeypatch.setattr(code_sandbox, "isolation", lambda: Isolation(layers, {}))
    with pytest.raises(code_sandbox.SandboxError, match="unheard"):
        run_code("print('BREACH')")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_decides_as_written(machine: str) -> None:
    """The filter interpreted here, for both machines, whichever this one is."""
    program = launch.seccomp_program(machine)
    column = 0 if machine == "x86_64" else 1
    arch = 0xC000003E if machine == "x86_64" else 0xC00000B7
    allow, deny = 0x7FFF0000, 0x00050001

    def decide(number: int | None, *arguments: int, of: int = arch) -> int:
        assert number is not None
        memory = {0: number, 4: of, **{16 + 8 * i: value for i, value in enumerate(arguments)}}
        at = loaded = 0
        while True:
            code, yes, no, value = program[at]
            at += 1
            if code == 0x06:
                return value
            if code == 0x20:
                loaded = memory.get(value, 0)
            elif code == 0x54:
                loaded &= value
            else:
                at += yes if (loaded == value if code == 0x15 else loaded >= value) else no

    for call in launch.ALLOWED.values():
        if call[column] is not None:
            assert decide(call[column]) == allow
    openat, clone, clone3, fcntl, prlimit = (56, 220, 435, 25, 261) if column else (257, 56, 435, 72, 302)
    assert decide(openat, 0, 0, os.O_RDONLY) == decide(openat, 0, 0, os.O_WRONLY | 0o1000) == allow
    assert decide(openat, 0, 0, 0o1000) == deny
    assert decide(clone, 0x00010000) == allow
    assert decide(clone, 17) == deny
    assert decide(clone3) == 0x00050026
    assert [decide(fcntl, 0, command) for command in (3, 1030, 8, 10)] == [allow, allow, deny, deny]
    assert decide(prlimit, 0) == allow
    assert decide(prlimit, 1) == deny
    assert decide(openat, of=0x40000003) == 0x80000000
    known = {call[column] for call in launch.ALLOWED.values()} | {openat, clone, clone3, fcntl, prlimit, 2 - 2 * column}
    assert all(
        decide(number) == deny for number in range(500) if number not in known and not (number == 2 and not column)
    )
