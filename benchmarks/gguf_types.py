"""GGUF types beside llama-quantize: the same tensors bit for bit, in what share of its time, with what perplexity.

Both get the same F16 file and the same importance matrix (of `tokenmill export gguf --save-imatrix`), both run on
the same number of threads, in turns. Without llama-perplexity's figures (no --text) only bits and times are compared.

    python benchmarks/gguf_types.py --model mine.f16.gguf --tools DIR --text held-out.txt --imatrix importance.gguf
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

TYPES = ("Q4_K_M", "Q5_K_M", "Q6_K", "Q3_K_M", "Q2_K", "Q4_0", "Q8_0")
RESULTS = Path(__file__).parent / "results" / "gguf_types.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="an F16, BF16 or F32 GGUF file")
    parser.add_argument("--name", help="what the results call the model; its rows there are replaced")
    parser.add_argument("--tools", type=Path, required=True, help="the folder of llama-quantize and llama-perplexity")
    parser.add_argument("--imatrix", type=Path, help="an importance matrix: each type is made with it too")
    parser.add_argument("--text", type=Path, help="text for llama-perplexity")
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ctx", type=int, default=256)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for type in args.types:
            for imatrix in dict.fromkeys((None, args.imatrix)):
                rows.append(measure(type, imatrix, args, Path(scratch)))
                print(json.dumps(rows[-1]), flush=True)
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    known[args.name or args.model.stem] = {"threads": args.threads, "rows": rows}
    args.out.write_text(json.dumps(known, indent=1) + "\n")


def measure(type: str, imatrix: Path | None, args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """One type, made by both in turns. Times are of the least round."""
    ours, theirs = scratch / "ours.gguf", scratch / "theirs.gguf"
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(args.rounds):
        times["ours"].append(make_ours(args.model, ours, type, imatrix))
        times["theirs"].append(make_theirs(args, theirs, type, imatrix))
    row: dict[str, Any] = {"type": type, "imatrix": imatrix is not None}
    row |= {f"{name}_s": min(found) for name, found in times.items()}
    row["time_ratio"] = row["ours_s"] / row["theirs_s"]
    row["tensors"], row["equal_tensors"] = equal_tensors(ours, theirs)
    row["decoded_by_gguf"] = decodes(ours)
    if args.text is not None:
        row |= {f"{name}_ppl": perplexity(path, args) for name, path in (("ours", ours), ("theirs", theirs))}
    return row


def make_ours(model: Path, out: Path, type: str, imatrix: Path | None) -> float:
    """Seconds from opening the file to the last byte, as llama-quantize counts; the start of Python is not in it."""
    from tokenmill.formats.gguf import GGUFFile
    from tokenmill.formats.gguf.imatrix import read_imatrix
    from tokenmill.ops.native import native
    from tokenmill.quant.ggml_export import source_from_gguf, write_source

    native()
    begin = time.perf_counter()
    importance = None if imatrix is None else read_imatrix(imatrix)
    write_source(source_from_gguf(GGUFFile(model)), out, type, importance=importance)
    return time.perf_counter() - begin


def make_theirs(args: argparse.Namespace, out: Path, type: str, imatrix: Path | None) -> float:
    """Its own figure of its whole time."""
    weights = [] if imatrix is None else ["--imatrix", str(imatrix)]
    words = [str(args.tools / "llama-quantize"), *weights, str(args.model), str(out), type, str(args.threads)]
    found = subprocess.run(words, capture_output=True, text=True, check=True)
    told = re.search(r"total time = *([\d.]+) ms", found.stdout + found.stderr)
    assert told is not None, found.stderr[-500:]
    return float(told[1]) / 1000


def equal_tensors(ours: Path, theirs: Path) -> tuple[int, int]:
    """How many tensors there are, and how many of them have the same type and decode to the same numbers."""
    import torch

    from tokenmill.formats.gguf import GGUFFile

    a, b = GGUFFile(ours), GGUFFile(theirs)
    same = [
        name
        for name, info in a.infos().items()
        if b.infos()[name].type == info.type and torch.equal(a.load(name), b.load(name))
    ]
    return len(a.infos()), len(same)


def decodes(path: Path) -> bool:
    """Whether the gguf package reads every tensor to the numbers that we read."""
    import gguf
    import numpy as np

    from tokenmill.formats.gguf import GGUFFile

    file = GGUFFile(path)
    return all(
        np.array_equal(
            gguf.dequantize(t.data, t.tensor_type).reshape(-1), file.load(t.name).float().numpy().reshape(-1)
        )
        for t in gguf.GGUFReader(path).tensors
    )


def perplexity(path: Path, args: argparse.Namespace) -> float:
    """As llama-perplexity has it."""
    words = [str(args.tools / "llama-perplexity"), "-m", str(path), "-f", str(args.text), "-c", str(args.ctx)]
    found = subprocess.run([*words, "-t", str(args.threads)], capture_output=True, text=True, check=True)
    told = re.findall(r"\[\d+\]([\d.]+),", found.stdout)  # the last is the estimate; its own line is lost at times
    assert told, found.stderr[-500:]
    return float(told[-1])


if __name__ == "__main__":
    main()
