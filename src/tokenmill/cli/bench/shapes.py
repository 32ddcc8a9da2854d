"""Flags that the sub-verbs of ``bench`` share: lists of sizes, and the machine that a result names."""

from __future__ import annotations

import os
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from tokenmill.evals.throughput import Shape

Model = Annotated[str, typer.Option(help="The model; pulled when it is missing.")]
PromptLen = Annotated[str, typer.Option(metavar="N,N,…", help="Tokens of each prompt; one measurement each.")]
GenLen = Annotated[str, typer.Option(metavar="N,N,…", help="New tokens of each sequence; one measurement each.")]
Batch = Annotated[str, typer.Option(metavar="N,N,…", help="Sequences at once; one measurement each.")]
DType = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]


def shapes(batch: str, prompt_len: str, gen_len: str) -> list[Shape]:
    """Every combination of the three lists, batch sizes innermost."""
    from tokenmill.evals.throughput import Shape

    lists = [whole_numbers("--prompt-len", prompt_len), whole_numbers("--gen-len", gen_len)]
    return [Shape(size, prompt, new) for prompt, new, size in product(*lists, whole_numbers("--batch", batch))]


def whole_numbers(flag: str, given: str) -> list[int]:
    """``1,8,64`` as numbers. UsageError names the flag."""
    try:
        return [int(number) for number in given.split(",")]
    except ValueError:
        raise UsageError(f"{flag} takes whole numbers with commas between, not {given!r}") from None


def software_and_machine(cores: tuple[int, ...]) -> dict[str, Any]:
    """What a figure depends on besides the model. No host name, no path. ``cores``: asked before torch came.

    ``load``: how many programs wanted a core in the last minute, the measured ones among them.
    """
    import torch

    from tokenmill.core.machine import probe_machine
    from tokenmill.core.version import __version__

    machine = probe_machine()
    return {
        "cpu": machine.cpu,
        "features": list(machine.features),
        "cores": len(cores) or machine.cores,
        "memory_gb": None if machine.memory_total is None else round(machine.memory_total / 1e9, 1),
        "system": machine.system,
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "tokenmill": __version__,
    }
