"""`data run` is killed with SIGKILL and given again: the same bytes come out as of one process that was left alone.
TOKENMILL_KILLS says at how many moments (default 1; 20 take some minutes)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.fakes.curation import rows, write_jsonl

KILLS = int(os.environ.get("TOKENMILL_KILLS", "1"))
RECIPE = """
steps:
- exact
- minhash: {bands: 4, rows: 2}
shard_mb: 1
"""


def command(folder: Path, out: str, workers: int = 2) -> list[str]:
    code = "from tokenmill.cli.app import main; import sys; sys.exit(main())"
    words = ["data", "run", str(folder / "mine.yaml"), f"input={folder / 'raw'}", f"output={folder / out}"]
    words.append(f"workers={workers}")
    return [sys.executable, "-c", code, *words]


def bytes_in(folder: Path) -> dict[str, bytes]:
    """All but the page, which says how long it took."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in ("report.html", ".lock"))
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    for number in range(6):
        write_jsonl(folder / "raw" / f"{number}.jsonl", rows(250, seed=number))
    (folder / "mine.yaml").write_text(RECIPE)
    return folder


def test_killed_and_given_again(folder: Path) -> None:
    started = time.monotonic()
    subprocess.run(command(folder, "whole", workers=1), check=True, capture_output=True)
    seconds = time.monotonic() - started
    wanted = bytes_in(folder / "whole")
    assert len(wanted) > 3
    cut_short = 0
    for kill in range(KILLS):
        # the moments differ from each other and, since the machine is never equally quick, from run to run
        after = seconds * (kill + 0.7) / (KILLS + 0.5)
        out = f"killed-{kill}"
        process = subprocess.Popen(command(folder, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        process.wait()
        cut_short += not (folder / out / "manifest.json").exists()
        again = subprocess.run(command(folder, out), check=False, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert bytes_in(folder / out) == wanted, f"killed after {after:.2f} s"
    assert cut_short or KILLS < 2
