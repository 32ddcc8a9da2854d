"""What HTTP and scheduling cost: `bench serve` against `bench throughput` at batch 16, in turn in one run.

    python benchmarks/overhead.py [--batch 16] [--rounds 3] [--out FILE]

A load of BATCH requests that are sent at once and read as streams, against a batch of the same lengths in the bare
engine: whole time against whole time, so that prompts, decoding, sampling, text, JSON, HTTP and the client that reads
it are all in. Both keep their model loaded; each rests while the other runs. The last line is JSON; the exit status
is 1 where the overhead is 10 % or more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path

from tokenmill.core.threads import bind_threads

LIMIT = 0.10


def main() -> int:
    bind_threads()  # before torch is imported, as the server that is started does
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures to this file, too")
    given = parser.parse_args()

    from tokenmill import LLM
    from tokenmill.cli.bench.serve import own_server
    from tokenmill.evals.load import Target, run_load
    from tokenmill.evals.throughput import Shape, start, warm_up
    from tokenmill.evals.workload import Workload

    shape = Shape(given.batch, given.input_len, given.output_len)
    model = LLM(given.model).model
    warm_up(model)

    def bare(seed: int) -> float:
        engine, requests = start(model, shape, seed)
        began = time.perf_counter()
        for _ in engine.run(requests):
            pass
        return time.perf_counter() - began

    def served(target: Target, seed: int) -> float:
        sizes = {"num_prompts": given.batch, "input_len": given.input_len, "output_len": given.output_len}
        result = asyncio.run(run_load(target, Workload(**sizes, seed=seed).asks(float("inf"))))
        figures = result.document()
        if figures["total_output_tokens"] != given.batch * given.output_len:
            raise SystemExit(f"not every answer has its full length: {figures['errors']}")
        return result.duration

    with own_server(given.model) as (url, name, key):
        target = Target(url, name, api_key=key)
        served(target, given.rounds)  # warm
        rounds = [(bare(seed), served(target, seed)) for seed in range(given.rounds)]
    overhead = statistics.median(http / engine - 1 for engine, http in rounds)
    tokens = given.batch * given.output_len
    figures = {
        "batch": given.batch,
        "input_len": given.input_len,
        "output_len": given.output_len,
        "engine_tok_s": tokens / statistics.median(engine for engine, _ in rounds),
        "server_tok_s": tokens / statistics.median(http for _, http in rounds),
        "rounds": [{"engine_s": engine, "server_s": http} for engine, http in rounds],
        "overhead": overhead,
        "limit": LIMIT,
        "passed": overhead < LIMIT,
    }
    if given.out is not None:
        given.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures))
    return 0 if overhead < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
