"""Runs under vLLM's own Python, not under ours: answers each shape on standard input with what vLLM did when.

Imports nothing of tokenmill. Arguments: a Hugging Face folder with bfloat16 weights, and the longest sequence. The
first line of standard output says the version and the seconds it took to start; what vLLM prints goes to standard
error.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from typing import Any


def moments(llm: Any, vocabulary: int, batch: int, prompt_len: int, gen_len: int) -> list[tuple[float, int, int, int]]:
    """A batch of random prompts: seconds, tokens made, sequences begun and ended after each step (see `throughput.py`).
    End-of-text is ignored, so that all of the work is done."""
    from vllm import SamplingParams  # type: ignore[import-not-found]

    engine = llm.llm_engine
    ids = [random.choices(range(vocabulary), k=prompt_len) for _ in range(batch)]
    params = SamplingParams(temperature=0, max_tokens=gen_len, ignore_eos=True, detokenize=False)
    made: dict[str, int] = {}
    found, ended = [], 0
    began = time.perf_counter()
    for number, one in enumerate(ids):
        engine.add_request(f"{began}-{number}", {"prompt_token_ids": one}, params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            made[output.request_id] = len(output.outputs[0].token_ids)
            ended += output.finished
        found.append((time.perf_counter() - began, sum(made.values()), len(made), ended))
    return found


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    os.environ.update({"VLLM_CPU_KVCACHE_SPACE": "2", **quiet})
    import vllm

    def say(document: dict[str, Any]) -> None:
        print(json.dumps(document), file=answers, flush=True)

    folder, max_len = sys.argv[1], int(sys.argv[2])
    began = time.perf_counter()
    llm = vllm.LLM(
        folder, dtype="bfloat16", max_model_len=max_len, skip_tokenizer_init=True, enable_prefix_caching=False
    )
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        vocabulary = json.load(file)["vocab_size"]
    moments(llm, vocabulary, 1, min(16, max_len - 8), 8)
    say({"version": vllm.__version__, "startup_s": time.perf_counter() - began})
    for line in sys.stdin:
        shape = json.loads(line)
        batch, prompt_len, gen_len = shape["batch"], shape["prompt_len"], shape["gen_len"]
        prefill = moments(llm, vocabulary, batch, prompt_len, 1)[-1]
        say({"prefill_s": prefill[0], "moments": moments(llm, vocabulary, batch, prompt_len, gen_len)})


if __name__ == "__main__":
    main()
