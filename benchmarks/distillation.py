"""What a teacher is worth: half of the default model's layers, trained alone and distilled, on the same tokens.

    python benchmarks/distillation.py --work build/distillation

The text is Python's own language reference as every CPython carries it. Every other layer is taken out; the rest is
trained on the same batches with the same settings: by the data alone, by the whole model's distributions, and by its
hidden states besides. Shown: bits a byte of held-out text after pruning and after either run, and of the whole
model. Three runs of some minutes on two cores; what is stopped goes on where it was. The figures go to
``results/distillation.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import tokenmill

MODEL = "smollm2:135m"
RESULT = Path(__file__).parent / "results" / "distillation.json"
LAYERS = 15
CASES: dict[str, dict[str, Any]] = {
    "distilled": {},
    "distilled, hidden states too": {"distill": {"hidden_weight": 1.0}},
    "alone": {},
}


def write_text(folder: Path) -> tuple[Path, Path]:
    """Training and held-out text: every ninth topic of the language reference is held out."""
    from pydoc_data.topics import topics

    paths = folder / "train.jsonl", folder / "held-out.jsonl"
    for number, path in enumerate(paths):
        if path.exists():  # a run goes on with the very file that it began with
            continue
        kept = [text for i, text in enumerate(topics.values()) if (i % 9 == 4) == bool(number)]
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in kept), encoding="utf-8")
    return paths


def halve(work: Path) -> Path:
    """The default model without every other layer."""
    out = work / "half"
    if not out.exists():
        command = ["prune", MODEL, "--method", "depth", "--layers", str(LAYERS), "--rule", "even", "--out", str(out)]
        subprocess.run([sys.executable, "-m", "tokenmill", *command], check=True)
    return out


def run(work: Path, case: str, model: Path | str, paths: tuple[Path, Path], steps: int, tokens: int) -> dict[str, Any]:
    """Train, or go on with what was stopped; its last evaluation and its time."""
    runs = work / f"runs-{case.replace(', ', '-').replace(' ', '-')}"
    latest = runs / "latest"
    began = time.perf_counter()
    if latest.exists():
        result = tokenmill.train(resume=latest.resolve())
    else:
        result = tokenmill.train(
            "pretrain" if case == "alone" else "distill",
            model=str(model),
            size=None,
            data={"path": str(paths[0]), "eval": str(paths[1])},
            steps=steps,
            epochs=None,
            lr=3e-4,
            optimizer="adamw",
            schedule="cosine",
            min_lr=0.1,
            cooldown=0.2,
            seq_len=256,
            micro_batch=2,
            batch_tokens=tokens,
            eval_every=0,
            eval_batches=40,
            sample_tokens=0,
            save_every=max(1, steps // 2),
            save_keep=1,
            save_best=0,
            trackers=[],
            out=str(runs),
            **CASES[case],
        )
    if result.reason == "stopped":
        raise SystemExit(f"stopped at step {result.step}; the same command goes on there")
    seconds = time.perf_counter() - began
    lines = (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    measured = [line for line in map(json.loads, lines) if "eval_bits_per_byte" in line]
    return {"bits_per_byte": measured[-1]["eval_bits_per_byte"], "steps": result.step, "seconds": seconds}


def untrained(model: Path | str, path: Path) -> float:
    """Bits a byte of the held-out text, in the rows that the runs are evaluated on."""
    from tokenmill.config.parts import DataConfig
    from tokenmill.data.loader import Loader
    from tokenmill.data.prepare import load_splits
    from tokenmill.train.evaluate import evaluate
    from tokenmill.train.objectives import NextToken

    loaded, tokenizer = tokenmill.load_model(model), tokenmill.load_tokenizer(model)
    splits = load_splits(DataConfig(path=str(path), eval_share=0.0, train_on="all"), tokenizer, seq_len=256)
    batches = Loader(splits.train, seq_len=256, micro_batch=4, seed=0).once(40)
    lengths = torch.from_numpy(splits.byte_lengths_V)
    found = evaluate(loaded.decoder, NextToken(), batches, device=torch.device("cpu"), byte_lengths_V=lengths)
    assert found.bits_per_byte is not None
    return found.bits_per_byte


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--tokens", type=int, default=1024, help="of a step")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    paths = write_text(given.work)
    half = halve(given.work)
    document: dict[str, Any] = {"model": MODEL, "layers": LAYERS, "steps": given.steps, "tokens_a_step": given.tokens}
    document["whole"] = untrained(MODEL, paths[1])
    document["pruned"] = untrained(half, paths[1])
    for name in CASES:
        document[name] = run(given.work, name, half, paths, given.steps, given.tokens)
        print(name, document[name], flush=True)
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
