"""Curation beside datatrove on the same documents and the same steps; figures go to results/curation.json.

    python benchmarks/curation.py --corpus DOCS.jsonl --megabytes 20 --datatrove PEER/bin/python
    python benchmarks/curation.py --whole web --corpus FOLDER            # a whole corpus through a recipe
    python benchmarks/curation.py --long-line                              # a line of 1 GB goes to the quarantine

The steps are Gopher's repetition and quality rules, C4's and FineWeb's quality rules, then MinHash with 14 x 8 of
5-grams; two processes each. Both are timed as whole commands, from start to files on disk, ours before and after the
peer's. The corpus is JSONL with ``text`` and ``id``; the first megabytes of it are taken. Memory is the sum over all
processes of what each has for itself (PSS), looked at ten times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tokenmill.core.machine import probe_machine

RESULTS = Path(__file__).parent / "results" / "curation.json"
STEPS = ["repetition", "gopher", "c4", "fineweb", "minhash"]

DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import (
    C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
)
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers.jsonl import JsonlWriter

source, work = sys.argv[1:]
config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
run = lambda name, pipeline, tasks: LocalPipelineExecutor(
    pipeline=pipeline, tasks=tasks, workers=2, logging_dir=f"{work}/logs/{name}", skip_completed=False
).run()
if __name__ == "__main__":
    filtered = f"{work}/filtered"
    run("filter", [JsonlReader(source), GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(),
                   FineWebQualityFilter(), JsonlWriter(filtered)], 2)
    run("signature", [JsonlReader(filtered), MinhashDedupSignature(f"{work}/signatures", config=config)], 2)
    run("buckets", [MinhashDedupBuckets(f"{work}/signatures", f"{work}/buckets", config=config)], 14)
    run("cluster", [MinhashDedupCluster(f"{work}/buckets", f"{work}/remove", config=config)], 1)
    run("remove", [JsonlReader(filtered), MinhashDedupFilter(f"{work}/remove"), JsonlWriter(f"{work}/out")], 2)
"""


def corpus(source: Path, megabytes: int, folder: Path) -> int:
    """The first megabytes of the corpus as two files, a worker's each; returns the number of documents."""
    files = sorted(source.rglob("*.jsonl")) if source.is_dir() else [source]
    folder.mkdir(parents=True)
    left, count = megabytes * 1_000_000, 0
    outs = [(folder / f"{n}.jsonl").open("wb") for n in (0, 1)]
    for file in files:
        with file.open("rb") as rows:
            for row in rows:
                outs[count % 2].write(row)
                left, count = left - len(row), count + 1
                if left <= 0:
                    break
        if left <= 0:
            break
    for out in outs:
        out.close()
    return count


class Watch:
    """The most memory that a process and its children had at once, MB, and the processors' seconds that they took. Not
    what the system says of ended children: some of the peer's are started by a server process."""

    def __init__(self, root: int) -> None:
        self.peak = 0.0
        self._busy: dict[int, float] = {}
        self._root, self._stop = root, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> dict[str, Any]:
        """What was seen; nothing is looked at any more."""
        self._stop.set()
        self._thread.join()
        return {"cpu_seconds": round(sum(self._busy.values()), 2), "peak_mb": round(self.peak)}

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            family = _family(self._root)
            self._busy |= family
            self.peak = max(self.peak, sum(map(_pss, family)) / 1000)


def _family(root: int) -> dict[int, float]:
    """A process and everything that it started: by number, its seconds so far."""
    parents: dict[int, list[int]] = {}
    busy: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
            busy[int(entry.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    found = [root]
    for one in found:
        found += parents.get(one, [])
    return {one: busy[one] for one in found if one in busy}


def _pss(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def timed(command: list[str]) -> tuple[dict[str, Any], str]:
    """Seconds, seconds of processors, MB at the peak; and the last line of stdout."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watch = Watch(process.pid)
    out, err = process.communicate()
    figures = {"seconds": round(time.perf_counter() - started, 2)} | watch.stop()
    if process.returncode:
        raise SystemExit(f"{command[0]} failed:\n{err[-3000:]}")
    return figures, (out.strip().splitlines() or [""])[-1]


def ours(source: Path, work: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """One run of `tokenmill data run`, from nothing."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    (work / "recipe.yaml").write_text(json.dumps(recipe))  # YAML holds JSON
    code = "from tokenmill.cli.app import main; import sys; sys.exit(main())"
    words = ["data", "run", str(work / "recipe.yaml"), f"input={source}", f"output={work / 'out'}", "--json"]
    figures, last = timed([sys.executable, "-c", code, *words])
    values = json.loads(last)
    return figures | {
        "kept": values["written"]["documents"],
        "characters_kept": values["written"]["characters"],
        "after": {step["name"]: step["went"] for step in values["steps"]},
    }


def datatrove(python: str, source: Path, work: Path) -> dict[str, Any]:
    """The same with datatrove's local executor."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    (work / "run.py").write_text(DATATROVE)
    figures, _ = timed([python, str(work / "run.py"), str(source), str(work)])
    import gzip

    kept = sum(len(gzip.decompress(file.read_bytes()).splitlines()) for file in (work / "out").rglob("*.jsonl.gz"))
    after_filters = sum(
        len(gzip.decompress(file.read_bytes()).splitlines()) for file in (work / "filtered").rglob("*.jsonl.gz")
    )
    return figures | {"kept": kept, "after_filters": after_filters}


def long_line(folder: Path) -> None:
    """A line of 1 GB between two good ones."""
    path = folder / "long.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "before"}\n')
        for _ in range(1024):
            file.write(b"x" * (1 << 20))
        file.write(b'\n{"text": "after"}\n')
    result = ours(path, folder / "work", {"steps": [], "workers": 2})
    print(json.dumps(result))
    print((folder / "work" / "out" / "quarantine.jsonl").read_text().strip())
    assert result["kept"] == 2


def whole(recipe: str, source: Path, out: Path, what: str, results: Path) -> None:
    """All of a corpus through a recipe of tokenmill's."""
    code = "from tokenmill.cli.app import main; import sys; sys.exit(main())"
    words = ["data", "run", recipe, f"input={source}", f"output={out}", "workers=2", "--json"]
    figures, last = timed([sys.executable, "-c", code, *words])
    values = json.loads(last)
    figures |= {
        "what": what,
        "recipe": recipe,
        "documents": values["read"]["documents"],
        "characters": values["read"]["characters"],
        "kept": values["written"]["documents"],
        "quarantined": values["quarantined"],
        "after": {step["name"]: step["went"] for step in values["steps"]},
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(figures, indent=1))
    keep(results, {"whole": figures})


def keep(path: Path, result: dict[str, Any]) -> None:
    """Put figures among those that are there."""
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(old | result, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, help="a .jsonl file or a folder of them")
    parser.add_argument("--megabytes", type=int, default=20)
    parser.add_argument("--datatrove", metavar="PYTHON", help="the interpreter of an environment that has datatrove")
    parser.add_argument("--whole", metavar="RECIPE", help="ours alone: all of the corpus, as it is, by this recipe")
    parser.add_argument("--what", default="", help="what the corpus is; goes onto the page")
    parser.add_argument("--long-line", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the figures go")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.long_line:
            long_line(folder)
            return
        if given.whole:
            whole(given.whole, given.corpus, folder / "out", given.what, given.out)
            return
        documents = corpus(given.corpus, given.megabytes, folder / "raw")
        recipe = {"steps": STEPS, "workers": 2}
        result: dict[str, Any] = {"what": given.what, "documents": documents, "megabytes": given.megabytes}
        result |= {
            "steps": recipe["steps"],
            "cores": len(os.sched_getaffinity(0)),
            "load": round(os.getloadavg()[0], 1),
        }
        rounds = [ours(folder / "raw", folder / "ours", recipe)]
        if given.datatrove:
            peer = datatrove(given.datatrove, folder / "raw", folder / "peer")
            rounds.append(ours(folder / "raw", folder / "ours", recipe))
            # the slower of ours against the peer
            mine = max(one["seconds"] for one in rounds)
            version = subprocess.run(
                [given.datatrove, "-c", "from importlib.metadata import version; print(version('datatrove'))"],
                check=True,
                capture_output=True,
                text=True,
            )
            result |= {"peer_version": version.stdout.strip(), "cpu": probe_machine().cpu}
            result |= {"peer": peer | {"documents_s": round(documents / peer["seconds"], 1)}}
            result["ratio"] = round(peer["seconds"] / mine, 2)
            busy = max(one["cpu_seconds"] for one in rounds)
            result["ratio_cpu"] = round(peer["cpu_seconds"] / busy, 2)
        result["ours"] = [one | {"documents_s": round(documents / one["seconds"], 1)} for one in rounds]
        result["load"] = round(os.getloadavg()[0], 1)
    print(json.dumps(result, indent=1))
    if given.datatrove:
        keep(given.out, result)


if __name__ == "__main__":
    main()
