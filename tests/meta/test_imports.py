"""Layers hold, and the command line starts quickly because it imports little."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What `--help` has no need of. Each costs more than all of the help together.
HEAVY = {
    "torch",
    "numpy",
    "transformers",
    "tokenizers",
    "gguf",
    "httpx",
    "huggingface_hub",
    "pydantic",
    "fastapi",
    "uvicorn",
    "prometheus_client",
    "prompt_toolkit",
}


def test_layers_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from tokenmill.cli.app import main\n"
        "status = main(['--help'])\n"
        "print(status, *sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    status, *loaded = done.stderr.split()
    assert status == "0"
    assert "Commands:" in done.stdout
    assert HEAVY & set(loaded) == set()


def test_package_import_is_light() -> None:
    code = "import sys, tokenmill; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()


def test_help_is_quick() -> None:
    """At most 0.3 s where an empty Python takes 0.01 s. Times on a busy machine lie, so the bound is a ratio to a
    Python that imports a fixed set of the standard library, taken in the same minute: measured 2.5 to 3."""
    yardstick = [sys.executable, "-c", "import typing, inspect, subprocess, json, http.client, email, decimal"]
    help_ = [sys.executable, "-m", "tokenmill", "--help"]
    ratio = _median_seconds(help_) / _median_seconds(yardstick)
    assert ratio < 6, f"--help takes {ratio:.1f} times as long as the yardstick"


def _median_seconds(command: list[str]) -> float:
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env={**os.environ, "COLUMNS": "80"})
        times.append(time.perf_counter() - begin)
    return statistics.median(times)
