"""Runs under the Python that has transformers (and PEFT), ours or another: training steps on request, and their cost.

Imports nothing of tokenmill. Arguments: a Hugging Face folder, ``full`` or ``lora``, rows, tokens a row, dtype. The
first line on standard output says the versions, after a step that warms up; then each line of standard input is a
number of steps, answered by their seconds and the peak of this process's memory. The setting is what the libraries
recommend: SDPA attention, fused AdamW, the model's own loss; PEFT with rank 16 on all linear layers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def build(folder: str, method: str, dtype: Any) -> tuple[Any, dict[str, str]]:
    """The model to train, and versions."""
    import torch
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if method == "lora":
        import peft

        config = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config)
        versions["peft"] = peft.__version__
    model.config.use_cache = False
    return model.train(), versions


def peak_memory() -> int:
    """Bytes: the most this process has held. From /proc, as getrusage's figure is inherited from the parent."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"})
    import torch

    folder, method, rows, length, dtype = sys.argv[1:]
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, versions = build(folder, method, getattr(torch, dtype))
    model = model.to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = torch.randint(0, model.config.vocab_size, (int(rows), int(length)), device=device)

    def step() -> None:
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    def say(document: dict[str, Any]) -> None:
        print(json.dumps(document), file=answers, flush=True)

    step()
    say({"versions": versions, "threads": torch.get_num_threads()})
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            step()
        seconds = time.perf_counter() - began
        memory = torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory()
        say({"seconds": seconds, "peak_memory": memory})


if __name__ == "__main__":
    main()
