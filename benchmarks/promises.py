"""What the server promises under load, measured on the default model: each ends in a ratio and pass or fail.

    python benchmarks/promises.py stall|queue|prefix [--out FILE]

stall: the 99th percentile between tokens of four streams while a prompt of 4,000 tokens arrives, against without it:
at most 3 times. queue: 64 streams at once against a queue of 32: each ends in its own full answer or a clean refusal.
prefix: 200 requests that share 1,000 tokens: at least 5 times less of their prompts is computed than there is.
The last line is JSON; the exit status is 1 where a promise is not kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenmill.cli.bench.serve import own_server
from tokenmill.core.threads import bind_threads
from tokenmill.evals.latencies import percentile
from tokenmill.evals.load import LoadResult, Target, run_load
from tokenmill.evals.workload import Ask, Workload

STREAMS, STREAM_TOKENS, LONG_PROMPT = 4, 160, 4000


def ids(count: int, seed: int) -> tuple[int, ...]:
    draw = random.Random(seed)
    return tuple(draw.randrange(100, 10_000) for _ in range(count))


def ask_all(target: Target, asks: Sequence[Ask], concurrency: int | None = None) -> LoadResult:
    return asyncio.run(run_load(target, asks, max_concurrency=concurrency))


def stall(model: str, rounds: int) -> dict[str, Any]:
    """The gaps of the short streams count; the long prompt's own answer must come too."""
    pairs = []
    with own_server(model) as server:
        target = Target(server.url, server.model, api_key=server.api_key)
        ask_all(target, [Ask(ids(8, 99), 4, 0.0)])  # warm
        for number in range(rounds):
            streams = [Ask(ids(32, 10 * number + place), STREAM_TOKENS, 0.0) for place in range(STREAMS)]
            long = Ask(ids(LONG_PROMPT, 1000 + number), 4, 1.0)
            without = ask_all(target, streams)
            during = ask_all(target, [*streams, long])
            if errors := [answer.error for answer in during.answers if answer.error]:
                raise SystemExit(f"a request failed: {errors[0]}")
            pairs.append([_p99(load.answers[:STREAMS]) for load in (without, during)])
    ratio = statistics.median(during / without for without, during in pairs)
    rows = [{"p99_itl_ms": 1000 * without, "p99_itl_with_prompt_ms": 1000 * during} for without, during in pairs]
    return {"rounds": rows, "ratio": ratio, "limit": 3.0, "passed": ratio <= 3.0}


def _p99(answers: Sequence[Any]) -> float:
    return percentile([gap for answer in answers for gap in answer.timing.itls], 99)


def queue(model: str, rounds: int) -> dict[str, Any]:
    """No two requests have the same lengths, so that an answer that went to another would show."""
    lost = wrong = completed = 0
    refused: dict[str, int] = {}
    with own_server(model, "--max-queue", "32") as server:
        target = Target(server.url, server.model, api_key=server.api_key)
        for number in range(rounds):
            asks = [Ask(ids(16 + place, 100 * number + place), 4 + place % 13, 0.0) for place in range(64)]
            done = ask_all(target, asks)
            lost += len(asks) - len(done.answers)
            for ask, answer in zip(asks, done.answers, strict=True):
                if answer.error:
                    refused[answer.error[:8]] = refused.get(answer.error[:8], 0) + 1
                    wrong += not answer.error.startswith(("HTTP 429", "HTTP 503"))
                    continue
                completed += 1
                lengths = (answer.prompt_tokens, answer.timing.output_tokens)
                wrong += lengths != (len(ask.token_ids), ask.output_len)
    return {"completed": completed, "refused": refused, "lost": lost, "wrong": wrong, "passed": not lost and not wrong}


def prefix(model: str, rounds: int) -> dict[str, Any]:
    """What was computed is what was asked less what the server says it found in its cache."""
    load = Workload(dataset="prefix", num_prompts=200, input_len=1024, prefix_len=1000, output_len=4)
    asked = computed = 0
    with own_server(model) as server:
        target = Target(server.url, server.model, api_key=server.api_key)
        for number in range(rounds):
            done = ask_all(target, replace(load, seed=number).asks(float("inf")), 8)
            figures = done.document()
            if figures["completed"] != load.num_prompts:
                raise SystemExit(f"not every request was answered: {figures['errors']}")
            asked += figures["total_input_tokens"]
            computed += figures["total_input_tokens"] - figures["total_cached_tokens"]
    ratio = asked / computed
    return {"asked": asked, "computed": computed, "ratio": ratio, "limit": 5.0, "passed": ratio >= 5.0}


def main() -> int:
    bind_threads()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    promises = {"stall": stall, "queue": queue, "prefix": prefix}
    parser.add_argument("promise", choices=promises)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the figures to this file, too")
    given = parser.parse_args()
    figures = {"promise": given.promise, "model": given.model, **promises[given.promise](given.model, given.rounds)}
    if given.out is not None:
        given.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures))
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
