"""``tokenmill doctor``: what a machine has, and what one without a compiler is told."""

from __future__ import annotations

import json

import pytest

from tokenmill.cli.app import main
from tokenmill.core.machine import probe_machine
from tokenmill.ops import native


def test_a_machine_without_a_compiler_is_told_what_that_costs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TOKENMILL_ISA", raising=False)
    monkeypatch.setattr(native, "_native", None)
    for name in ("native", "why_not"):  # what was found when the process began is of no use here
        monkeypatch.setattr(native, name, getattr(native, name).__wrapped__)
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kernels"]["isa"] is None
    advice = next(line for line in report["advice"] if "no native CPU kernels" in line)
    assert "several times slower" in advice
    assert "C++20 compiler" in advice
    assert report["operations"]["packed_linear"][-1] == "reference"


def test_what_is_here_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    found = native.native()
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    for part in ("Kernels", "Extras", "To do", probe_machine().cpu, found.isa if found else str(native.why_not())):
        assert part in told, part
