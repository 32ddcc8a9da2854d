"""Write tests/data/golden/preferences.npz: losses, gradients and metrics of preference objectives as TRL 1.16 has them.

Run it only to add a case, where trl 1.16.0 is installed beside transformers 5.23: ``python tests/make_trl_golden.py``.
The batches are token ids and masks, so that no template stands between the two; ``tests/parity/test_preferences.py``
gives the same ones to our objectives.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from fakes.preference_cases import CASES, ROWS, reference_folder, scorer_folder
from fakes.tiny_llm import tiny_folder

GOLDEN = Path(__file__).parent / "data" / "golden" / "preferences.npz"
WHOLE = ("model.layers.1.self_attn.q_proj.weight", "model.norm.weight", "score.weight")
"""Gradients that are kept whole; of the others the norm."""


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def inputs(pairs: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """Prompts with answers as TRL's collators give them, padded on the right."""
    rows = [prompt + answer for prompt, answer in pairs]
    return {
        "input_ids": padded(rows, 0),
        "attention_mask": padded([[1] * len(row) for row in rows], 0),
        "completion_mask": padded([[0] * len(p) + [1] * len(a) for p, a in pairs], 0),
    }


def labelled(given: dict[str, torch.Tensor]) -> torch.Tensor:
    return given["input_ids"].masked_fill(given["completion_mask"] == 0, -100)


def trainer_of(name: str, options: dict[str, Any], folder: Path, out: str) -> tuple[Any, Any]:
    """A trainer of TRL's, made in the ordinary way over a row that is not looked at, and its model."""
    import datasets
    import transformers
    import trl
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.pad_token = "<|endoftext|>"
    causal = transformers.AutoModelForCausalLM.from_pretrained
    rows = [{"prompt": "a", "chosen": " b", "rejected": " c"}] * 2
    more: dict[str, Any] = {}
    config: dict[str, Any] = {"output_dir": out, "report_to": [], "use_cpu": True, "bf16": False, **options}
    makers = {
        "dpo": (trl.DPOTrainer, trl.DPOConfig),
        "simpo": (CPOTrainer, CPOConfig),
        "orpo": (ORPOTrainer, ORPOConfig),
        "kto": (trl.KTOTrainer, trl.KTOConfig),
        "reward": (trl.RewardTrainer, trl.RewardConfig),
    }
    trainer, settings = makers[name]
    if name == "kto":
        rows = [{"prompt": "a", "completion": " b", "label": True}, {"prompt": "a", "completion": " c", "label": False}]
    if name in ("dpo", "kto"):
        more["ref_model"] = causal(folder / "reference", dtype=torch.float32)
    if name == "reward":
        kind = transformers.AutoModelForSequenceClassification
        model = kind.from_pretrained(folder / "scorer", dtype=torch.float32)
    else:
        model = causal(folder / "model", dtype=torch.float32)
    made = trainer(
        model=model,
        args=settings(**config),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        **more,
    )
    return made, made.model


def loss_of(name: str, trainer: Any, model: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of the fixed batch with its graph, and TRL's metrics."""
    chosen, rejected = ([(row["prompt"], row[side]) for row in ROWS] for side in ("chosen", "rejected"))
    if name in ("orpo", "simpo"):
        batch: dict[str, Any] = {}
        for side, pairs in (("chosen", chosen), ("rejected", rejected)):
            given = inputs(pairs)
            batch |= {f"{side}_input_ids": given["input_ids"], f"{side}_attention_mask": given["attention_mask"]}
            batch[f"{side}_labels"] = labelled(given)
        batch["prompt_input_ids"] = padded([p for p, _ in chosen], 0)
        return trainer.get_batch_loss_metrics(model, batch)
    if name == "reward":
        given = inputs([*chosen, *rejected])
        given.pop("completion_mask")
        loss = trainer.compute_loss(model, {**given, "margin": torch.tensor([row["margin"] for row in ROWS])})
    elif name == "kto":
        answers = [row["chosen"] if row["good"] else row["rejected"] for row in ROWS]
        mine = inputs([(row["prompt"], answer) for row, answer in zip(ROWS, answers, strict=True)])
        other = inputs([(row["prompt"], answers[i - 1]) for i, row in enumerate(ROWS)])
        given = {**mine, **{f"KL_{key}": value for key, value in other.items()}}
        loss = trainer._compute_loss(model, {**given, "label": torch.tensor([row["good"] for row in ROWS])}, False)
    else:
        loss = trainer._compute_loss(model, inputs([*chosen, *rejected]), False)
    return loss, {key: values[-1] for key, values in trainer._metrics["train"].items()}


def cases(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    for label, (name, _, options) in CASES.items():
        with tempfile.TemporaryDirectory() as out:
            trainer, model = trainer_of(name, options, folder, out)
            model.train()
            loss, metrics = loss_of(name, trainer, model)
            loss.backward()
        gradients = {n.removeprefix("module."): p.grad for n, p in model.named_parameters() if p.grad is not None}
        yield f"{label}/loss", loss.detach().numpy()
        yield f"{label}/metrics", np.array(json.dumps({key: float(value) for key, value in metrics.items()}))
        norms = {name: float(gradient.norm()) for name, gradient in gradients.items()}
        yield f"{label}/norms", np.array(json.dumps(norms))
        for name in WHOLE:
            if name in gradients:
                yield f"{label}/gradient/{name}", gradients[name].numpy()


def main() -> None:
    import trl

    assert trl.__version__ == "1.16.0", f"the golden values are TRL 1.16.0's, this is {trl.__version__}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tiny_folder(folder / "model")
        reference_folder(folder / "reference")
        scorer_folder(folder / "scorer")
        found = dict(cases(folder))
    np.savez_compressed(GOLDEN, **found)
    for key, value in found.items():
        if key.endswith("/loss"):
            print(key, float(value))


if __name__ == "__main__":
    main()
