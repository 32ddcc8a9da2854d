"""`make bench`: start-up, first token and greedy decoding here, beside transformers on the same weights in one run.

Prints a table, and as the last line one JSON document. A time alone says more of the machine than of the program, so
what counts is the ratio to transformers; run it on a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenmill.core.threads import bind_threads

MODEL = "smollm2:135m"
MESSAGES = [{"role": "user", "content": "Write a long story about a lighthouse keeper and the sea."}]


def first_byte_s(words: list[str]) -> float:
    """Seconds from starting `tokenmill WORDS` to its first byte on stdout."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "tokenmill", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - begin
        process.stdout.read()
    if process.returncode:
        raise SystemExit(f"tokenmill {' '.join(words)} ended with {process.returncode}")
    return seconds


def decode_rate(generate: Callable[[int], int], tokens: int) -> float:
    """Tokens a second past the first: the time of a short answer is taken off a long one's."""

    def seconds(count: int) -> tuple[float, int]:
        begin = time.perf_counter()
        made = generate(count)
        return time.perf_counter() - begin, made

    seconds(2)  # warm
    short, few = seconds(2)
    long, many = seconds(tokens)
    return (many - few) / (long - short)


def ours(dtype: str) -> tuple[Callable[[int], int], Any]:
    from tokenmill import LLM, SamplingParams

    llm = LLM(MODEL, dtype=dtype)

    def generate(count: int) -> int:
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        return len(llm.chat(MESSAGES, params).token_ids)

    return generate, llm


def theirs(llm: Any, dtype: str, folder: Path) -> Callable[[int], int]:
    """transformers on the very same weights, written out by tokenmill."""
    import torch
    from transformers import AutoModelForCausalLM

    from tokenmill import load_model

    load_model(MODEL, dtype=dtype).save(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    ids = torch.tensor([llm.prompt_ids(MESSAGES)])

    def generate(count: int) -> int:
        with torch.inference_mode():
            made = model.generate(ids, do_sample=False, min_new_tokens=count, max_new_tokens=count)
        return made.shape[1] - ids.shape[1]

    return generate


def main() -> None:
    bind_threads()  # before torch is imported; it speeds transformers up as well
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=64, help="length of the long answer")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="both compute in it")
    given = parser.parse_args()

    figures: dict[str, Any] = {"model": MODEL, "dtype": given.dtype, "threads": os.cpu_count()}
    figures["help_s"] = statistics.median(first_byte_s(["--help"]) for _ in range(5))
    first = ["run", MODEL, "Hi", "--temperature", "0", "--max-tokens", "1"]
    first_byte_s(first)  # pulls the model, fills the page cache
    figures["first_token_s"] = statistics.median(first_byte_s(first) for _ in range(3))

    our_generate, llm = ours(given.dtype)
    with tempfile.TemporaryDirectory() as folder:
        their_generate = theirs(llm, given.dtype, Path(folder))
        rates = [(decode_rate(our_generate, given.tokens), decode_rate(their_generate, given.tokens)) for _ in range(3)]
    figures["decode_tok_s"], figures["transformers_decode_tok_s"] = (
        statistics.median(column) for column in zip(*rates, strict=True)
    )
    figures["decode_ratio"] = statistics.median(our / their for our, their in rates)

    for name, value in figures.items():
        print(f"{name:<26} {value:.3f}" if isinstance(value, float) else f"{name:<26} {value}", file=sys.stderr)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
