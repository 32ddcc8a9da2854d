"""Near duplicates among millions of documents: time, memory and correctness of MinHash's decision alone.

    python benchmarks/near_duplicates.py --documents 3000000

Band keys are drawn at random (texts of that number would take a day), a tenth of the documents share a band with an
earlier one. The decision has to keep exactly one of each group. Printed are seconds, the highest memory of the
process's own (RssAnon) and with mapped files (VmRSS), and the bytes on disk.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from tokenmill.data.curate.copies import RANK, Observed
from tokenmill.data.curate.minhash import MinHash, MinHashOptions

SHARD = 50_000


def planted(count: int, folder: Path, bands: int) -> tuple[list[Path], int]:
    """Files of observed keys, and how many groups there are."""
    random_of = np.random.default_rng(0)
    paths, groups = [], 0
    for start in range(0, count, SHARD):
        number = min(SHARD, count - start)
        keys = random_of.integers(1, 2**64, (bands, number), dtype=np.uint64)
        ranks = np.zeros(number, RANK)
        ranks["size"] = random_of.integers(100, 10_000, number)
        ranks["id"] = np.arange(start, start + number)
        copies = random_of.random(number) < (0.1 if start else 0.0)
        groups += int((~copies).sum())
        if paths:  # of a document of any earlier shard
            earlier = Observed.open(paths[random_of.integers(len(paths))])
            chosen = random_of.integers(0, len(earlier.ranks), number)[copies]
            band = int(random_of.integers(bands))
            keys[band, copies] = earlier.keys[band, chosen]
        paths.append(folder / f"{start:012d}.observed")
        paths[-1].write_bytes(Observed(keys, ranks).to_bytes())
    return paths, groups


class Peak:
    """The highest memory of this process while it is open, in MB."""

    def __enter__(self) -> Peak:
        self.values = {"RssAnon": 0.0, "VmRSS": 0.0}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            status = Path("/proc/self/status").read_text()
            for name in self.values:
                found = re.search(rf"{name}:\s+(\d+)", status)
                if found:
                    self.values[name] = max(self.values[name], int(found[1]) / 1024)


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--bands", type=int, default=14)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths, groups = planted(given.documents, folder, given.bands)
        step = MinHash(MinHashOptions(bands=given.bands), 0)
        verdict = folder / "verdict"
        verdict.mkdir()
        with Peak() as peak:
            started = time.perf_counter()
            step.decide(paths, verdict)
            seconds = time.perf_counter() - started
        kept = int(np.fromfile(verdict / "stays.bin", np.bool_).sum())
        size = sum(path.stat().st_size for path in paths)
    assert kept == groups, f"{kept} kept of {groups} groups"
    memory = {name: round(value) for name, value in peak.values.items()}
    print(json.dumps({"documents": given.documents, "groups": groups, "seconds": round(seconds, 1), "mb": memory,
                      "observed_mb": size >> 20}))  # fmt: skip


if __name__ == "__main__":
    main()
