"""Training speed beside a peer: each side is a process, sides take turns, ratios are ours over theirs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tokenmill.core.errors import NotFoundError, TokenmillError, UsageError
from tokenmill.evals import training_speed
from tokenmill.evals.cores import Cores
from tokenmill.evals.training_speed import Side, Work, find_python, measure, wanted

DRIVER = """
import json, sys
name, log = {name!r}, open({log!r}, "a")
assert sys.argv[2:] == ["lora", "4", "512", "bfloat16"], sys.argv
assert "OMP_PROC_BIND" in __import__("os").environ
print(json.dumps({{"versions": {{name: "1"}}}}), flush=True)
for line in sys.stdin:
    if {fails!r}: sys.exit("out of memory, alas")
    print(name, int(line), file=log, flush=True)
    print(json.dumps({{"seconds": {seconds} * int(line), "peak_memory": {peak}}}), flush=True)
"""
WORK = Work("lora", 4, 512, "bfloat16")


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Drivers that answer at once: ours does a step in 2 s and 1 GB, theirs in 4 s and 4 GB."""
    for name, seconds, peak in (("tokenmill", 2.0, 10**9), ("transformers", 4.0, 4 * 10**9)):
        text = DRIVER.format(name=name, log=str(tmp_path / "log"), seconds=seconds, peak=peak, fails=False)
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(training_speed, "DRIVERS", {n: tmp_path / f"{n}.py" for n in training_speed.DRIVERS})
    return tmp_path


def test_sides_take_turns_and_ratios_are_ours_over_theirs(drivers: Path) -> None:
    result = measure(drivers, WORK, peer=Path(sys.executable), cores=Cores(1), steps=3, rounds=2)
    assert (drivers / "log").read_text().split("\n")[:-1] == ["tokenmill 3", "transformers 3"] * 2
    assert result["tokenmill"] == {"tok_s": 1024.0, "peak_memory_mb": 1000.0, "versions": {"tokenmill": "1"}}
    assert result["ratio"] == {"tok_s": 2.0, "peak_memory": 0.25}


def test_alone_there_is_no_ratio(drivers: Path) -> None:
    result = measure(drivers, WORK, peer=None, cores=Cores(1), steps=1, rounds=1)
    assert "ratio" not in result
    assert "transformers" not in result


def test_a_side_that_dies_says_its_last_words(drivers: Path) -> None:
    text = DRIVER.format(name="x", log=str(drivers / "log"), seconds=1, peak=1, fails=True)
    (drivers / "tokenmill.py").write_text(text)
    side = Side("tokenmill", Path(sys.executable), drivers, WORK, Cores(1))
    with pytest.raises(TokenmillError, match="out of memory, alas"):
        side.steps(1)
    side.close()


def test_names_are_known_or_refused() -> None:
    assert wanted("lora, full,lora", ("full", "lora"), "method") == ["lora", "full"]
    with pytest.raises(UsageError, match="did you mean 'transformers'"):
        wanted("transformer", training_speed.PEERS, "peer")


def test_a_peer_that_is_not_here_says_where_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENMILL_PEERS", raising=False)
    with pytest.raises(NotFoundError, match="pip install no_such_package"):
        find_python(["no_such_package"], None)
    python = tmp_path / "hf" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert find_python(["no_such_package"], tmp_path) == python
    assert find_python(["json"], None) == Path(sys.executable)
