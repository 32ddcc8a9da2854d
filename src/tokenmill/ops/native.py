"""The compiled CPU kernels (``native/`` at the repository's root): whether they are here, and their threads.

The extension is optional. Without a compiler at installation, on a machine without AVX2 or NEON's dot product, or with
``TOKENMILL_ISA=reference``, everything runs on torch. ``TOKENMILL_ISA=avx2`` (or avx512, amx, neon) forces the kernels
lower than the machine allows, for tests and for people who hunt a bug.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch

from tokenmill.core.errors import UsageError
from tokenmill.core.threads import allowed_cores

INTERFACE = 2
"""What the extension calls its own interface: raised, here and in native/src/module.cpp, when a call changes."""

UNARY = {"silu": 0, "swish": 0, "gelu_new": 1, "gelu_pytorch_tanh": 1, "gelu_fast": 1, "gelu": 2, "relu": 3}
"""Activations by the numbers of ``Unary`` in native/src/kernels.h."""


def _load() -> Any:
    try:
        return import_module("tokenmill._native")
    except ImportError:  # not built: pip found no compiler
        return None


_native = _load()


@dataclass(frozen=True)
class Native:
    """The extension with the kernels chosen for this machine, and the threads they run on."""

    module: Any
    kernels: Any
    pool: Any

    @property
    def isa(self) -> str:
        return str(self.kernels.name)


@cache
def native() -> Native | None:
    """The kernels, or None where there are none; :func:`why_not` says why. UsageError if a forced set is not here.

    One pool of threads serves the process, as torch's own does: two of them would take the cores from each other.
    Callers take turns.
    """
    if why_not() is not None:
        return None
    kernels = _native.kernels(_wanted())
    return Native(_native, kernels, _native.Pool(torch.get_num_threads(), list(allowed_cores())))


@cache
def why_not() -> str | None:
    """Why the kernels are not used, or None if they are."""
    if _wanted() == "reference":
        return "TOKENMILL_ISA=reference asks for torch alone"
    if _native is None:
        return "they are not built: install tokenmill again where a C++20 compiler is (g++ 12 or clang 15, or newer)"
    if getattr(_native, "interface", 1) != INTERFACE:
        return "they were built from another version: install tokenmill again (pip install, in the folder you pulled)"
    try:
        _native.kernels(_wanted())
    except ValueError as error:
        if _wanted():
            raise UsageError(f"TOKENMILL_ISA: {error}, reference") from None
        return str(error)
    return None


def _wanted() -> str:
    return os.environ.get("TOKENMILL_ISA", "").strip().lower()
