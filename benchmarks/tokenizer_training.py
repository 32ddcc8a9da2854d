"""Time and peak memory of ``tokenmill tokenizer train`` on 100 MB, one process a kind.

    python benchmarks/tokenizer_training.py TEXT.jsonl [KIND …]

TEXT.jsonl: rows with ``text``; 100 MB of it count. The document goes to ``benchmarks/results/tokenizers.json``;
a kind that is not measured again keeps its figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

KINDS = ("byte-bpe", "bpe", "wordpiece", "unigram", "char")
RESULTS = Path(__file__).parent / "results" / "tokenizers.json"


def measure(text: str, kind: str, out: str) -> dict[str, Any]:
    """One training; its own child process is the only one that counts."""
    words = ["tokenizer", "train", text, "--kind", kind, "--out", out, "--max-mb", "100", "--json"]
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", "tokenmill", *words], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = json.loads(child.stdout.read().splitlines()[-1])
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    return {
        "text_mb": said["text_bytes"] / 1e6,
        "vocab_size": said["vocab_size"],
        "bytes_per_token": said["bytes_per_token"],
        "seconds": time.perf_counter() - began,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_mb": used.ru_maxrss / 1024,
    }


def main() -> int:
    """Measure the kinds asked for."""
    text, *kinds = sys.argv[1:]
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds or KINDS:
            results[kind] = measure(text, kind, folder)
            print(kind, results[kind], flush=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
