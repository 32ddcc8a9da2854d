"""``tokenmill bench latency``: how long one batch makes people wait, without a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from tokenmill.cli.bench.shapes import Batch, DType, GenLen, Model, PromptLen, shapes, software_and_machine
from tokenmill.cli.output import Json, PullProgress, columns, emit, step_progress
from tokenmill.core.threads import allowed_cores

EPILOG = """\b
Example:
  tokenmill bench latency --model smollm2:135m --batch 1 --prompt-len 32 --gen-len 64 --repeat 5
"""
NAMES = {"ttft": "time to first token", "tpot": "per output token", "itl": "between tokens", "e2el": "end to end"}
FIGURES = ("mean", "p50", "p90", "p95", "p99")


def latency(
    model: Model,
    batch: Batch = "1",
    prompt_len: PromptLen = "128",
    gen_len: GenLen = "64",
    repeat: Annotated[int, typer.Option(min=1, help="Batches of each size, after one to warm up.")] = 5,
    dtype: DType = "auto",
    as_json: Json = False,
) -> None:
    """Time to the first token, between tokens, per token and to the end, of batches on an idle engine."""
    cores = allowed_cores()
    import torch

    from tokenmill import LLM
    from tokenmill.evals.latency import latency as measure

    asked = shapes(batch, prompt_len, gen_len)
    with PullProgress() as pulled:
        llm = LLM(model, dtype=dtype, progress=pulled)
    with step_progress("batch sizes") as progress:
        rows = measure(llm.model, asked, repeat=repeat, progress=progress)
    document = {
        "model": model,
        "dtype": str(llm.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "machine": software_and_machine(cores),
        "results": rows,
    }
    sizes = [f"{row['batch']} x {row['prompt_len']}+{row['gen_len']}" for row in rows]
    emit(document, as_json, latency_table("BATCH", sizes, rows))


def latency_table(head: str, labels: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each metric of each row, in milliseconds; ``labels`` say which row it is."""
    lines = []
    for label, row in zip(labels, rows, strict=True):
        for metric, name in NAMES.items():
            values = [row[f"{figure}_{metric}_ms"] for figure in FIGURES]
            lines.append((label, name, *("-" if value is None else f"{value:.1f}" for value in values)))
    return columns((head, "MILLISECONDS", *(figure.upper() for figure in FIGURES)), lines, gap=2)
