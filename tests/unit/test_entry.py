"""The script's own module: Ctrl-C in the first moments of a command, when little of it is loaded."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

# SIGINT arrives when the module is asked for: the same moment on every machine, however busy.
CHILD = """
import signal, sys

at = sys.argv.pop(1)
signal.signal(signal.SIGINT, signal.{handler})

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == at:
            sys.meta_path.remove(self)
            {before}
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from tokenmill.__main__ import main
raise SystemExit(main())
"""


def interrupted(
    at: str, *words: str, handler: str = "default_int_handler", before: str = "pass", home: Path
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD.format(handler=handler, before=before), at, *words]
    environment = {"TOKENMILL_HOME": str(home)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)


@pytest.mark.parametrize(
    "at",
    ["tokenmill.cli", "tokenmill.cli.app", "typer", "tokenmill.core.threads", "tokenmill.cli.list", "tokenmill.store"],
)
def test_ctrl_c_while_it_loads_ends_it_in_silence(at: str, tmp_path: Path) -> None:
    done = interrupted(at, "list", home=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_interrupt_that_the_import_system_would_swallow_ends_it_too(tmp_path: Path) -> None:
    """An exception in a finaliser is printed and forgotten: the command would go on as if nobody had pressed a key."""
    swallowed = "type('Last', (), {'__del__': lambda self: signal.raise_signal(signal.SIGINT)})()"
    done = interrupted("typer", "list", before=swallowed, home=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("at", ["typer", "tokenmill.store"])
def test_an_interrupt_that_the_caller_ignores_stays_ignored(at: str, tmp_path: Path) -> None:
    done = interrupted(at, "list", handler="SIG_IGN", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_script_begins_here_and_loads_nothing_before() -> None:
    scripts = importlib.metadata.distribution("tokenmill").entry_points.select(group="console_scripts")
    assert {script.value for script in scripts} == {"tokenmill.__main__:main"}
    code = "import sys; import tokenmill.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if name.partition(".")[0] == "tokenmill"}
    assert loaded == {"tokenmill", "tokenmill.core", "tokenmill.core.version", "tokenmill.__main__"}
    assert "typer" not in done.stdout.split()
