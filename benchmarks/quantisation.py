"""What each quantiser makes of the default model: perplexity, KL divergence from the original, size, seconds.

    python benchmarks/quantisation.py --data examples/texts/devils-dictionary.txt --text book.txt

The original is the model's own file, unpacked. Every method is calibrated with the same documents and measured on the
same windows as `tokenmill eval ppl` takes them. `--peer PYTHON` names an interpreter that has llm-compressor: its GPTQ
is run at the same settings (4 bits, groups of 32, symmetric, static act-order, damping 0.01) on the very same token
ids, in turns with ours (ours, theirs, ours), and its folder is read and measured by us. Every case's figures go to
``results/quantisation.json`` when it is done, beside those of other cases under the same conditions: `--only` names
some, `--only none --peer PYTHON` runs the peer alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from tokenmill.cli.bench.shapes import software_and_machine
from tokenmill.config.parts import DataConfig
from tokenmill.data.calibration import calibration
from tokenmill.evals.divergence import Original, windows_of
from tokenmill.evals.quantisation import Job, run_job
from tokenmill.models.load import load_model, load_tokenizer
from tokenmill.quant.settings import Settings, settings
from tokenmill.store import Store

RESULT = Path(__file__).parent / "results" / "quantisation.json"
CASES: dict[str, Settings] = {
    "rtn, groups of 128": settings("rtn"),
    "gptq, groups of 128": settings("gptq"),
    "awq, groups of 128": settings("awq"),
    "rtn, groups of 32": settings("rtn", group_size=32),
    "rtn with zeros, groups of 32": settings("rtn", group_size=32, symmetric=False),
    "gptq, groups of 32": settings("gptq", group_size=32),
    "gptq with zeros, groups of 32": settings("gptq", group_size=32, symmetric=False),
    "awq, groups of 32": settings("awq", group_size=32),
    "3 bits, rtn, groups of 128": settings("rtn", bits=3),
    "3 bits, gptq, groups of 128": settings("gptq", bits=3),
    "3 bits, gptq, groups of 32": settings("gptq", bits=3, group_size=32),
    "3.5 bits in the mean, gptq, groups of 128": settings("gptq", budget=3.5),
    "3 bits, codebook": settings("codebook", bits=3),
    "w8a8": settings("w8a8"),
    "w8a8, all layers in 8 bits": settings("w8a8", bits=8),
    "llm-int8": settings("llm-int8"),
    "fp8": settings("fp8"),
    "nf4": settings("nf4"),
}
PEER = """
import json, sys, time, torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

source, documents, out = sys.argv[1:]
documents = torch.load(documents)
rows = [{"input_ids": d.tolist(), "attention_mask": [1] * len(d)} for d in documents]
model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
weights = QuantizationArgs(
    num_bits=4, type="int", symmetric=True, strategy="group", group_size=32, actorder="static"
)
recipe = GPTQModifier(
    config_groups={"all": QuantizationScheme(targets=["Linear"], weights=weights)},
    ignore=["lm_head"], dampening_frac=0.01,
)
begun = time.perf_counter()
oneshot(
    model=model, dataset=Dataset.from_list(rows), recipe=recipe, max_seq_length=max(map(len, documents)),
    num_calibration_samples=len(documents), processor=AutoTokenizer.from_pretrained(source),
)
seconds = time.perf_counter() - begun
model.save_pretrained(out, save_compressed=True)
print(json.dumps(seconds))
"""


def measured(name: str, job: Job, path: Path, work: Path) -> dict[str, Any]:
    """One case, from a freshly loaded model."""
    model = load_model(path, dtype="float32")
    _, result = run_job(job, model, work)
    document = result.document()
    del document["layers"]
    found = result.divergence
    assert found is not None
    print(
        f"{name:42} ppl {found.ppl:8.3f}  KL {found.kl:.5f}  {result.nbytes / 1e6:6.1f} MB  {result.seconds:6.1f} s",
        flush=True,
    )
    return document


def peer(
    python: str, path: Path, documents: list[torch.Tensor], original: Original, job: Job, work: Path
) -> dict[str, Any]:
    """The same by the other program, between two runs of ours."""
    load_model(path, dtype="float32").save(work / "source")
    load_tokenizer(path).save(work / "source")
    torch.save(documents, work / "documents.pt")
    ours = [measured("ours", job, path, work / "ours-1")["seconds"]]
    command = [python, "-c", PEER, *(str(work / name) for name in ("source", "documents.pt", "theirs"))]
    seconds = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    again = measured("ours", job, path, work / "ours-2")
    theirs = original.compare(load_model(work / "theirs", dtype="float32").decoder)
    ours.append(again["seconds"])
    print(f"{'theirs':32} ppl {theirs.ppl:8.3f}  KL {theirs.kl:.5f}  {seconds:26.1f} s")
    return {
        "ours": again["divergence"],
        "theirs": theirs.asdict(),
        "seconds": {"ours": ours, "theirs": seconds, "ratio": seconds / (sum(ours) / 2)},
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--data", default="examples/texts/devils-dictionary.txt")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--only", nargs="*", choices=[*CASES, "none"])
    parser.add_argument("--peer", help="an interpreter that has llm-compressor")
    given = parser.parse_args()
    path = Store().resolve(given.model, pull=True).path
    tokenizer = load_tokenizer(path)
    found = calibration(DataConfig(path=[given.data], duplicates="drop"), tokenizer, samples=given.samples)
    windows = windows_of(tokenizer.encode(given.text.read_text(encoding="utf-8")), 512)[: given.windows]
    original = Original(load_model(path, dtype="float32").decoder, windows)
    conditions = {
        "model": given.model,
        "data": Path(given.data).name,
        "samples": len(found.documents),
        "text": given.text.name,
        "windows": len(windows),
    }
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for number, (name, case) in enumerate(CASES.items()):
            if given.only is None or name in given.only:
                job = Job(given.model, name, case, found.documents, original, torch.float16)
                keep(conditions, "rows", {name: measured(name, job, path, work / str(number))})
        if given.peer:
            job = Job(given.model, "peer", CASES["gptq, groups of 32"], found.documents, original, torch.float16)
            keep(conditions, "peer", peer(given.peer, path, found.documents, original, job, work))


def keep(conditions: dict[str, Any], part: str, figures: dict[str, Any]) -> None:
    """Write some figures beside those that were taken under the same conditions; others go."""
    kept = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    if {name: kept.get(name) for name in conditions} != conditions:
        kept = dict(conditions)
    kept[part] = kept.get(part, {}) | figures
    if part == "rows":
        kept[part] = {name: kept[part][name] for name in CASES if name in kept[part]}
    kept["machine"] = software_and_machine(tuple(range(torch.get_num_threads())))
    RESULT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
