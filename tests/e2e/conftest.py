"""Runners of the installed command, on a store that holds the default model."""

from __future__ import annotations

from pathlib import Path

import pytest

from shell import Run, runner


@pytest.fixture
def tokenmill(model_home: Path, tmp_path: Path) -> Run:
    """Runs a command on the shared store; use it for what only reads."""
    return runner(model_home, tmp_path)


@pytest.fixture
def tokenmill_own(default_gguf: Path, tmp_path: Path) -> Run:
    """Runs a command on a store of the test's own, in which ``base`` is the default model, linked in place."""
    run = runner(tmp_path / "home", tmp_path)
    (tmp_path / "Basefile").write_text(f"FROM {default_gguf}\nPARAMETER temperature 0\n", encoding="utf-8")
    done = run("create", "base", "-f", "Basefile")
    assert done.returncode == 0, done.stderr
    return run
