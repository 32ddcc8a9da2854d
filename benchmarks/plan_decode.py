"""How far the planner's decode rate on this processor lies from the truth, measured in the same minute.

For the default model, a quantised one and one of its own dimensions with random weights, at two contexts each. Run it
on a quiet machine: ``python benchmarks/plan_decode.py --out benchmarks/results/plan-decode.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tokenmill.cli.bench.shapes import software_and_machine
from tokenmill.core.threads import allowed_cores
from tokenmill.plan.here import measure_here, probe

WIDE = {"hidden": 1024, "layers": 6, "heads": 16, "kv": 4, "mlp": 2816, "vocab": 8192}
DEEP = {"hidden": 512, "layers": 20, "heads": 8, "kv": 8, "mlp": 1408, "vocab": 16384}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    cores = allowed_cores()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        models = {given.model: given.model}
        for name, kind, dims in (("wide, Q8_0", "Q8_0", WIDE), ("deep, Q4_0", "Q4_0", DEEP)):
            path = Path(folder) / f"{name.split(',')[0]}.gguf"
            probe(path, kind, 11, dims)
            models[name] = str(path)
        for name, model in models.items():
            for prompt in (32, 256):
                found = measure_here(model, prompt, 32)
                rows.append({"model": name, "prompt": prompt, **found.as_dict()})
                print(json.dumps(rows[-1]), flush=True)
    document = {"machine": software_and_machine(cores), "load": os.getloadavg()[0], "results": rows}
    if given.out is not None:
        given.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
