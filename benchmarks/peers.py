"""Ours beside llama.cpp and vLLM on several number formats of one model; figures go to results/peers.json.

    python benchmarks/peers.py --peer-dir DIR --vs llama.cpp --formats Q4_1,Q4_0,Q8_0 --batch 1,16 --repeat 3

A format that the model's own file does not have is made from it with llama.cpp's llama-quantize. Everything is measured
by `tokenmill bench throughput --vs`; a measurement of the same shape takes the place of an older one. Then
`python benchmarks/page.py` writes the page.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tokenmill.evals.peers import find_peer
from tokenmill.store import Store

RESULTS = Path(__file__).parent / "results" / "peers.json"
SHAPE = ("format", "batch", "prompt_len", "gen_len")


def file_of(name: str, number_format: str, tools: Path, folder: Path) -> Path:
    """The model's GGUF file in a format, quantised anew where it has another."""
    source = Store().resolve(name, pull=True).path
    from tokenmill.formats import open_tensors

    types = [info.type for info in open_tensors(source).infos().values()]
    if max(set(types), key=types.count) == number_format:
        return source
    target = folder / f"{number_format}.gguf"
    command = [str(tools / "llama-quantize"), "--allow-requantize", str(source), str(target), number_format]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return target


def merged(old: dict[str, Any], new: dict[str, Any], number_format: str, note: str = "") -> dict[str, Any]:
    """`old` results with the rows of one run of `bench throughput`, each with what it was measured with."""
    common = {key: new[key] for key in ("dtype", "threads", "repeat", "machine", "roof")} | {"programs": new["peers"]}
    common["note"] = note
    rows = [{"format": number_format, **row, **common} for row in new["results"]]
    fresh = {tuple(row[key] for key in SHAPE) for row in rows}
    kept = [row for row in old.get("rows", []) if tuple(row[key] for key in SHAPE) not in fresh]
    rows = sorted([*kept, *rows], key=lambda row: tuple(row[key] for key in SHAPE))
    return {"model": old.get("model", new["model"]), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--peer-dir", type=Path)
    parser.add_argument("--vs", default="llama.cpp")
    parser.add_argument("--formats", default="Q4_1,Q4_0,Q8_0,Q4_K_M")
    parser.add_argument("--note", default="", help="what else a reader has to know of this run; goes onto the page")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given, flags = parser.parse_known_args()  # the rest is for bench throughput: --batch, --prompt-len, …
    tools = find_peer("llama.cpp", given.peer_dir)
    more = ["--peer-dir", str(given.peer_dir)] if given.peer_dir else []
    with tempfile.TemporaryDirectory() as scratch:
        for number_format in given.formats.split(","):
            file = file_of(given.model, number_format, tools, Path(scratch))
            words = ["bench", "throughput", "--model", str(file), "--vs", given.vs, *more, *flags, "--json"]
            done = subprocess.run(
                [sys.executable, "-m", "tokenmill", *words], stdout=subprocess.PIPE, text=True, check=True
            )
            old = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {"model": given.model}
            results = merged(old, json.loads(done.stdout.splitlines()[-1]), number_format, given.note)
            given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(f"{number_format}: done", file=sys.stderr)


if __name__ == "__main__":
    main()
