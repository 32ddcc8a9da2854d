"""Runs under vLLM's own Python, not under ours: answers each shape on standard input with vLLM's speed at it.

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


def seconds(llm: Any, vocabulary: int, batch: int, prompt_len: int, gen_len: int) -> float:
    """How long a batch of random prompts takes. End-of-text is ignored, so that all of the work is done."""
    from vllm import SamplingParams  # type: ignore[import-not-found]

    ids = [random.choices(range(vocabulary), k=prompt_len) for _ in range(batch)]
    params = SamplingParams(temperature=0, max_tokens=gen_len, ignore_eos=True, detokenize=False)
    began = time.perf_counter()
    llm.generate([{"prompt_token_ids": one} for one in ids], params, use_tqdm=False)
    return time.perf_counter() - began


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
    seconds(llm, vocabulary, 1, min(16, max_len - 8), 8)
    say({"version": vllm.__version__, "startup_s": time.perf_counter() - began})
    for line in sys.stdin:
        shape = json.loads(line)
        batch, prompt_len, gen_len = shape["batch"], shape["prompt_len"], shape["gen_len"]
        first = seconds(llm, vocabulary, batch, prompt_len, 1)
        whole = seconds(llm, vocabulary, batch, prompt_len, gen_len)
        decode_s = max(whole - first, 1e-9)
        say({"prefill_tok_s": batch * prompt_len / first, "decode_tok_s": batch * (gen_len - 1) / decode_s})


if __name__ == "__main__":
    main()
