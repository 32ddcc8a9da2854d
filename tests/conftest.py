"""What all tests share: ``fakes`` on the import path, however tests are collected, and the default model on disk."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
# Tests run side by side, a process a core, so each gets one thread; two processes that bind two threads each would meet
# on the first core. Set before torch is imported; commands that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# `run` asks a running server; whatever runs on the machine of whoever tests is no part of a test
os.environ["TOKENMILL_HOST"] = "127.0.0.1:1"

if built := os.environ.get("TOKENMILL_TEST_NATIVE"):  # kernels that are not installed: make sanitize
    spec = importlib.util.spec_from_file_location("tokenmill._native", built)
    assert spec is not None, f"TOKENMILL_TEST_NATIVE={built} is no extension module"
    assert spec.loader is not None
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])

from tokenmill.store import Store

DEFAULT_MODEL = "smollm2:135m"


@pytest.fixture(scope="session")
def model_home() -> Path:
    """A TOKENMILL_HOME whose store holds the default model. Kept between runs; ``TOKENMILL_TEST_HOME`` moves it."""
    home = Path(os.environ.get("TOKENMILL_TEST_HOME") or Path(__file__).parents[1] / "build" / "test-home").absolute()
    Store(home / "models").resolve(DEFAULT_MODEL, pull=True)
    return home


@pytest.fixture(scope="session")
def default_gguf(model_home: Path) -> Path:
    """The default model's GGUF file."""
    return Store(model_home / "models").resolve(DEFAULT_MODEL).path
