"""``tokenmill bench``: how fast a model is here."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

import typer

from tokenmill.cli.output import Json, PullProgress, columns, emit, step_progress
from tokenmill.core.errors import UsageError

app = typer.Typer(no_args_is_help=True)

EPILOG = """\b
Example:
  tokenmill bench throughput --model smollm2:135m --batch 1,8 --prompt-len 128 --gen-len 64
"""


@app.callback()
def bench() -> None:
    """Measure speed on this machine."""


@app.command(epilog=EPILOG)
def throughput(
    model: Annotated[str, typer.Option(help="The model; pulled when it is missing.")],
    batch: Annotated[str, typer.Option(metavar="N,N,…", help="Sequences at once; one measurement each.")] = "1,8",
    prompt_len: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    gen_len: Annotated[int, typer.Option(min=2, help="New tokens of each sequence.")] = 64,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    as_json: Json = False,
) -> None:
    """Tokens a second, reading prompts and writing answers, by batch size. Quiet machines give true figures."""
    started = time.perf_counter()
    try:
        batches = [int(size) for size in batch.split(",")]
    except ValueError:
        raise UsageError(f"--batch takes whole numbers with commas between, not {batch!r}") from None

    import torch

    from tokenmill import LLM
    from tokenmill.evals.throughput import throughput as measure

    with PullProgress() as pulled:
        llm = LLM(model, dtype=dtype, progress=pulled)
    startup_s = time.perf_counter() - started
    with step_progress("batch sizes") as progress:
        results = measure(llm.model, batches, prompt_len=prompt_len, gen_len=gen_len, progress=progress)
    document = {
        "model": model,
        "dtype": str(llm.model.dtype).removeprefix("torch."),
        "startup_s": startup_s,
        "threads": torch.get_num_threads(),
        "prompt_len": prompt_len,
        "gen_len": gen_len,
        "results": [asdict(result) for result in results],
    }
    rows = [
        (str(r.batch), f"{r.prefill_tok_s:.0f}", f"{r.decode_tok_s:.1f}", f"{r.peak_rss_mb:.0f} MB") for r in results
    ]
    emit(document, as_json, columns(("BATCH", "PREFILL TOK/S", "DECODE TOK/S", "PEAK MEMORY"), rows))
