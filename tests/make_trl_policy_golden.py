"""Write tests/data/golden/policy.npz: losses, gradients and metrics of policy objectives as TRL 1.16 has them.

Run it only to add a case, where trl 1.16.0 is installed beside transformers 5.23:
``python tests/make_trl_policy_golden.py``. ``tests/parity/test_policy.py`` gives the same batches to our objective.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from fakes.policy_cases import CASES, LONGEST, NOISE, REWARDS, ROWS, SAMPLER
from fakes.tiny_llm import tiny_folder

GOLDEN = Path(__file__).parent / "data" / "golden" / "policy.npz"
WHOLE = ("model.layers.1.self_attn.q_proj.weight", "model.norm.weight")


def padded(rows: list[list[Any]], fill: Any, side: str) -> torch.Tensor:
    longest = max(map(len, rows))
    gaps = [[fill] * (longest - len(row)) for row in rows]
    return torch.tensor([gap + row if side == "left" else row + gap for row, gap in zip(rows, gaps, strict=True)])


def inputs() -> dict[str, torch.Tensor]:
    prompts, completions = ([row[name] for row in ROWS] for name in ("prompt", "completion"))
    return {
        "prompt_ids": padded(prompts, 0, "left"),
        "prompt_mask": padded([[1] * len(row) for row in prompts], 0, "left"),
        "completion_ids": padded(completions, 0, "right"),
        "completion_mask": padded([[1] * len(row) for row in completions], 0, "right"),
        "advantages": torch.tensor([row["advantage"] for row in ROWS]),
    }


def spread(flat: list[float]) -> torch.Tensor:
    """Values of all tokens as padded rows."""
    ends = np.cumsum([len(row["completion"]) for row in ROWS])
    return padded([part.tolist() for part in np.split(np.array(flat), ends[:-1])], 0.0, "right").float()


def trainer_of(name: str, options: dict[str, Any], folder: Path, out: str) -> Any:
    import datasets
    import transformers
    import trl

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "<|endoftext|>"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    made, settings = {"grpo": (trl.GRPOTrainer, trl.GRPOConfig), "rloo": (trl.RLOOTrainer, trl.RLOOConfig)}[name]
    config = {"output_dir": out, "report_to": [], "use_cpu": True, "bf16": False, "max_completion_length": LONGEST}
    config |= {"per_device_train_batch_size": 2, "num_generations": 2, "gradient_accumulation_steps": 1}
    return made(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings(**config, **options),
        train_dataset=datasets.Dataset.from_list([{"prompt": "a"}] * 2),
        processing_class=tokenizer,
    )


def loss_of(name: str, ours: dict[str, Any], trainer: Any, known: torch.Tensor) -> torch.Tensor:
    given: dict[str, Any] = inputs()
    mask = given["completion_mask"]
    old = (known + spread(NOISE["old"])) * mask
    given["num_items_in_batch"] = mask.sum()
    if name == "rloo":
        given["old_logps"] = old.sum(1)
    elif not ours.get("first"):
        given["old_per_token_logps"] = old
    if "beta" in ours:
        given["ref_per_token_logps"] = (known + spread(NOISE["reference"])) * mask
    if "correction" in ours:
        trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
        sampler = (known - spread(SAMPLER)) * mask
        given["importance_sampling_ratio"] = ((old - sampler) * mask).exp().clamp(max=ours["correction_cap"])
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer._compute_loss(trainer.model, given)


def logprobs(trainer: Any) -> torch.Tensor:
    given = inputs()
    ids = torch.cat([given["prompt_ids"], given["completion_ids"]], 1)
    mask = torch.cat([given["prompt_mask"], given["completion_mask"]], 1)
    with torch.no_grad():
        found = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, given["completion_ids"].shape[1])
    return found[0]


def advantages() -> dict[str, np.ndarray]:
    """As GRPOTrainer and RLOOTrainer compute them, with TRL's own standard deviation."""
    from trl.trainer.utils import nanstd

    rewards = torch.tensor(REWARDS)
    centred = rewards - rewards.nanmean(1, keepdim=True)
    counts = (~rewards.isnan()).sum(1, keepdim=True)
    others = rewards - (rewards.nansum(1, keepdim=True) - rewards) / (counts - 1)
    found = {
        "grpo/group": centred / (nanstd(rewards, dim=1)[:, None] + 1e-4),
        "grpo/batch": centred / (nanstd(rewards) + 1e-4),
        "grpo/none": centred,
        "rloo/none": others,
        "rloo/batch": (others - others.nanmean()) / (nanstd(others) + 1e-4),
    }
    return {f"advantages/{name}": values.nan_to_num(0.0).numpy() for name, values in found.items()}


def main() -> None:
    import trl

    assert trl.__version__ == "1.16.0", f"the golden values are TRL 1.16.0's, this is {trl.__version__}"
    found = advantages()
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as out:
        folder = Path(scratch)
        tiny_folder(folder)
        for label, (name, ours, options) in CASES.items():
            trainer = trainer_of(name, options, folder, out)
            known = logprobs(trainer)
            loss = loss_of(name, ours, trainer, known)
            loss.backward()
            metrics = {key: float(values[-1]) for key, values in trainer._metrics["train"].items()}
            gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
            found[f"{label}/loss"] = loss.detach().numpy()
            found[f"{label}/known"] = known[inputs()["completion_mask"] == 1].numpy()
            found[f"{label}/metrics"] = np.array(json.dumps(metrics))
            found[f"{label}/norms"] = np.array(json.dumps({n: float(g.norm()) for n, g in gradients.items()}))
            found |= {f"{label}/gradient/{n}": gradients[n].numpy() for n in WHOLE}
            print(label, float(loss), metrics)
    np.savez_compressed(GOLDEN, **found)


if __name__ == "__main__":
    main()
