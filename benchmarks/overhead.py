"""What HTTP and scheduling cost: `bench serve` against `bench throughput` at batch 16, in turn in one run.

    python benchmarks/overhead.py [--batch 16] [--rounds 3] [--out FILE]

A load of BATCH requests that are sent at once and read as streams, against a batch of the same lengths in the bare
engine: whole time against whole time, so that prompts, decoding, sampling, text, JSON, HTTP and the client that reads
it are all in. Both keep their model loaded; each rests while the other runs. Processor time is shown beside it, of the
server's process alone, since other work on the machine disturbs it least. The last line is JSON; the exit status
is 1 where the overhead is 10 % or more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenmill.cli.bench.serve import Running, own_server
from tokenmill.core.threads import allowed_cores, bind_threads

LIMIT = 0.10


@dataclass(frozen=True)
class Spent:
    """What one side took; ``cpu_s`` of its process, all threads together."""

    wall_s: float
    cpu_s: float


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, from Linux' /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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

    with own_server(given.model) as server:  # before torch binds this thread to one core, which a child would inherit
        figures = measured(given, server, allowed_cores())
    if given.out is not None:
        given.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures))
    return 0 if figures["passed"] else 1


def measured(given: argparse.Namespace, server: Running, cores: tuple[int, ...]) -> dict[str, Any]:
    """Bare engine and server in turn."""
    import torch

    from tokenmill import LLM
    from tokenmill.cli.bench.shapes import software_and_machine
    from tokenmill.evals.load import Target, run_load
    from tokenmill.evals.throughput import Shape, start, warm_up
    from tokenmill.evals.workload import Workload

    shape = Shape(given.batch, given.input_len, given.output_len)
    model = LLM(given.model).model
    warm_up(model)

    def bare(seed: int) -> Spent:
        engine, requests = start(model, shape, seed)
        began, cpu = time.perf_counter(), time.process_time()
        for _ in engine.run(requests):
            pass
        return Spent(time.perf_counter() - began, time.process_time() - cpu)

    def served(server: Running, seed: int) -> Spent:
        sizes = {"num_prompts": given.batch, "input_len": given.input_len, "output_len": given.output_len}
        target = Target(server.url, server.model, api_key=server.api_key)
        asks = Workload(**sizes, vocab_size=model.config.vocab_size, seed=seed).asks(float("inf"))
        assert server.pid is not None
        cpu = cpu_seconds(server.pid)
        result = asyncio.run(run_load(target, asks))
        figures = result.document()
        if figures["total_output_tokens"] != given.batch * given.output_len:
            raise SystemExit(f"not every answer has its full length: {figures['errors']}")
        return Spent(result.duration, cpu_seconds(server.pid) - cpu)

    rounds = []
    served(server, given.rounds)  # warm
    for seed in range(given.rounds):
        rounds.append((bare(seed), served(server, seed)))
        print(f"round {seed}: engine {rounds[-1][0]}, server {rounds[-1][1]}", file=sys.stderr)
    overhead = statistics.median(http.wall_s / engine.wall_s - 1 for engine, http in rounds)
    tokens = given.batch * given.output_len
    return {
        "threads": torch.get_num_threads(),
        "machine": software_and_machine(cores),
        "batch": given.batch,
        "input_len": given.input_len,
        "output_len": given.output_len,
        "engine_tok_s": tokens / statistics.median(engine.wall_s for engine, _ in rounds),
        "server_tok_s": tokens / statistics.median(http.wall_s for _, http in rounds),
        "rounds": [{"engine": asdict(engine), "server": asdict(http)} for engine, http in rounds],
        "overhead": overhead,
        "cpu_overhead": statistics.median(http.cpu_s / engine.cpu_s - 1 for engine, http in rounds),
        "limit": LIMIT,
        "passed": overhead < LIMIT,
    }


if __name__ == "__main__":
    sys.exit(main())
