"""What ``policy.py steps`` runs with the peer's interpreter: GRPO steps by TRL's trainer, timed; prints a JSON line."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    import datasets
    import peft
    import torch
    import transformers
    import trl

    asked = json.loads(sys.argv[1])
    rows = [json.loads(line) for line in Path(asked["prompts"]).read_text(encoding="utf-8").splitlines()]
    rows = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    times: list[float] = []
    lengths: list[int] = []

    def reward(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.extend(map(len, completion_ids))
        words = [len(one[0]["content"].split()) for one in completions]
        return [max(0.0, 1.0 - max(0, count - 10) / 20) for count in words]

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as out:
        args = trl.GRPOConfig(
            output_dir=out,
            report_to=[],
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=asked["batch"] // 16,
            num_generations=asked["group"],
            max_completion_length=asked["tokens"],
            max_steps=asked["steps"],
            loss_type="grpo",
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            temperature=1.0,
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )
        model = transformers.AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.bfloat16)
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=args,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=transformers.AutoTokenizer.from_pretrained(asked["model"]),
            peft_config=peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
            callbacks=[Clock()],
        )
        trainer.train()
    steps = [b - a for a, b in itertools.pairwise(times)]
    print(json.dumps({"seconds": sum(steps) / len(steps), "tokens": sum(lengths) / len(lengths)}))


if __name__ == "__main__":
    main()
