"""``tokenmill bench train``: tokens a second and peak memory of training, alone or beside transformers and PEFT."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenmill.cli.bench.shapes import Model, software_and_machine
from tokenmill.cli.output import Json, PullProgress, columns, emit, human_size, step_progress

EPILOG = """\b
Examples:
  tokenmill bench train --model smollm2:135m --method lora
  tokenmill bench train --model smollm2:135m --vs transformers,peft
"""


def train(
    model: Model,
    method: Annotated[str, typer.Option(metavar="NAME,…", help="full: all weights; lora: rank 16.")] = "full,lora",
    vs: Annotated[
        str, typer.Option(metavar="PEER,…", help="Take turns with transformers (full) and peft (lora).")
    ] = "",
    peer_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Has hf/bin/python; else ours, or TOKENMILL_PEERS.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Documents a step.")] = 4,
    length: Annotated[int, typer.Option(min=2, help="Tokens of each.")] = 512,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of a round.")] = 2,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 3,
    as_json: Json = False,
) -> None:
    """Tokens a second and peak memory of whole training steps. Quiet machines give true figures."""
    from tokenmill.core.threads import allowed_cores
    from tokenmill.evals.cores import Cores
    from tokenmill.evals.training_speed import METHODS, PEERS, Work, find_python, measure, wanted

    cores = allowed_cores()
    wanted(dtype, ("bfloat16", "float32"), "dtype")
    methods, peers = wanted(method, METHODS, "method"), wanted(vs, PEERS, "peer")
    pythons: dict[str, Path | None] = dict.fromkeys(methods)
    if "transformers" in peers and "full" in methods:
        pythons["full"] = find_python(["transformers"], peer_dir)
    if peers and "lora" in methods:
        pythons["lora"] = find_python(["transformers", "peft"], peer_dir)

    import torch

    from tokenmill import load_model
    from tokenmill.store import Store

    results = []
    with tempfile.TemporaryDirectory(prefix="tokenmill-bench-") as folder:
        with PullProgress() as pulled:
            path = Store().resolve(model, pull=True, progress=pulled).weights()
        load_model(path, dtype=dtype).save(Path(folder))
        with step_progress("methods") as progress:
            for number, name in enumerate(methods):
                result = measure(
                    Path(folder),
                    Work("lora" if name == "lora" else "full", rows, length, dtype),
                    peer=pythons[name],
                    cores=Cores(torch.get_num_threads(), cores),
                    steps=steps,
                    rounds=repeat,
                )
                results.append(result)
                progress(number + 1, len(methods))
    document = {
        "model": model,
        "threads": torch.get_num_threads(),
        "machine": software_and_machine(cores),
        "results": results,
    }
    emit(document, as_json, _table(results))


def _table(results: list[dict[str, Any]]) -> str:
    rows: list[tuple[str, ...]] = []
    for result in results:
        for name in ("tokenmill", "transformers"):
            if name in result:
                peak = human_size(int(result[name]["peak_memory_mb"] * 1e6))
                rows.append((result["method"], name, f"{result[name]['tok_s']:.0f}", peak))
        if "ratio" in result:
            ratio = result["ratio"]
            rows.append((result["method"], "ratio", f"{ratio['tok_s']:.2f}", f"{ratio['peak_memory']:.2f}"))
    return columns(("METHOD", "BY", "TOK/S", "PEAK MEMORY"), rows)
