"""docs/benchmarks.md is what benchmarks/page.py makes of the result files, and these hold nothing of one machine."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def script(name: str) -> ModuleType:
    """A file of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_the_page_is_generated() -> None:
    for path, text in script("page").pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale; run: python benchmarks/page.py"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_name_no_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r'"(/|[A-Z]:\\)|/tmp/|/home/|/root/|hostname', text)


def row(number_format: str, batch: int, ours: float) -> dict[str, Any]:
    """A row as `bench throughput --vs` writes it, without what all rows of a run share."""
    peer = {"prefill_tok_s": 100.0, "decode_tok_s": 50.0, "prefill_ratio": 2.0, "decode_ratio": ours / 50}
    size = {"batch": batch, "prompt_len": 8, "gen_len": 4}
    return {**size, "prefill_tok_s": 200.0, "decode_tok_s": ours, "peers": {"llama.cpp": peer}}


def run(*rows: dict[str, Any]) -> dict[str, Any]:
    machine: dict[str, Any] = {
        "cpu": "a & b",
        "features": ["avx2"],
        "memory_gb": 8,
        "system": "Linux",
        "tokenmill": "1",
        "torch": "2",
    }
    machine["load"] = 1.5
    programs = [{"name": "llama.cpp", "version": "1", "weights": "the same file"}]
    common = {"dtype": "float32", "threads": 2, "repeat": 1, "machine": machine, "peers": programs}
    return {"model": "/somewhere/m.gguf", **common, "roof": {"bandwidth_gb_s": 10.0}, "results": list(rows)}


def test_results_are_merged_by_shape() -> None:
    merged = script("peers").merged
    first = merged({"model": "m"}, run(row("Q4_0", 1, 60.0), row("Q4_0", 8, 300.0)), "Q4_0")
    second = merged(first, run(row("Q8_0", 1, 40.0)), "Q8_0")
    third = merged(second, run(row("Q4_0", 1, 70.0)), "Q4_0")
    assert [(r["format"], r["batch"], r["decode_tok_s"]) for r in third["rows"]] == [
        ("Q4_0", 1, 70.0),
        ("Q4_0", 8, 300.0),
        ("Q8_0", 1, 40.0),
    ]
    assert "somewhere" not in json.dumps(third)


def test_plot_and_table_show_every_row() -> None:
    page, peers = script("page"), script("peers")
    results = peers.merged(
        {"model": "m"}, run({**row("Q4_0", 1, 60.0), "roof_tok_s": 90.0}, row("Q4_0", 8, 30.0)), "Q4_0"
    )
    drawn = ET.fromstring(page.plot(results))
    bars = drawn.findall("{*}rect")
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert widths == pytest.approx([value * page.WIDTH / 90 for value in (60, 50, 30, 50)], abs=0.1)
    assert "roof 90" in "".join(drawn.itertext())
    text = page.peers_section(results)
    assert text.count("**tokenmill**") == text.count("| llama.cpp |") == 2
    assert "| 100 | 50.0 | 2.00 | 0.60 |" in text


def test_scripts_say_how_they_are_called(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read by people before they are run: --help works without a model."""
    for name in ("overhead", "promises", "peers"):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
        with pytest.raises(SystemExit) as ended:
            script(name).main()
        assert ended.value.code == 0
        assert "--model" in capsys.readouterr().out
