"""``tokenmill quantize`` from outside: a folder with its reports, several compared, mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fakes.tiny_llm import tiny_folder
from tokenmill.cli.app import main
from tokenmill.core.checksums import check_sums
from tokenmill.evals.quantisation import run_job
from tokenmill.models import load_tokenizer


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model and chats to calibrate it with."""
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    rows = [{"prompt": f"what is {n}?", "completion": f"it is {n}"} for n in range(60)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


DATA = ["--data", "chats.jsonl", "--seq-len", "64"]


def test_a_folder_with_its_reports(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "model/README.md").write_text("---\nlicense: mit\n---\n")
    words = ["quantize", "model", "--group-size", "32", *DATA, "--out", "small", "--json"]
    assert main(words) == 0
    told = last_line(capsys)
    assert told["divergence"]["kl"] > 0
    assert all(layer["heard"] for layer in told["layers"])
    assert json.loads((place / "small/quantization_report.json").read_text()) == told
    assert "Error by layer" in (place / "small/quantization_report.html").read_text()
    assert not list(place.glob(".small*")), "the working folder is gone"
    check_sums(place / "small")
    card = (place / "small/README.md").read_text()
    assert "license: mit" in card
    assert f"| weight_bits | {told['weight_bits']:.6g} |" in card
    ends = json.loads((place / "small/generation_config.json").read_text())["eos_token_id"]
    assert load_tokenizer("small").id_to_token(ends if isinstance(ends, int) else ends[0]), "where programs stop"
    assert main(["export", "hf", "small", "--out", "handed", "--json"]) == 0
    assert last_line(capsys)["dtype"] == "compressed-tensors, 4 bits"
    assert "license: mit" in (place / "handed/README.md").read_text()
    assert main(words) == 2
    assert "new or empty" in capsys.readouterr().err


def test_several_compared(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "quantize",
        "model",
        "--compare",
        "rtn:4:32,gptq:3:32,rtn:4.7:32,codebook:3,w8a8",
        *DATA,
        "--out",
        "compared",
        "--json",
    ]
    assert main(words) == 0
    told = last_line(capsys)
    assert set(told["results"]) == {"rtn:4:32", "gptq:3:32", "rtn:4.7:32", "codebook:3", "w8a8"}
    mixed = told["results"]["rtn:4.7:32"]
    assert mixed["weight_bits"] <= mixed["bits_budget"] == 4.7
    assert len({layer["bits"] for layer in mixed["layers"]}) > 1
    assert all(layer["estimated_kl"] > 0 for layer in mixed["layers"])
    assert "Bits by layer: rtn:4.7:32" in (place / "compared/quantization_report.html").read_text()
    assert told["frontier"][-1] == "w8a8"
    eight = told["results"]["w8a8"]
    assert eight["weight_bits"] <= eight["bits_budget"] == 9.5
    assert eight["kept"] == [layer["name"] for layer in eight["layers"] if layer["bits"] == 16] != []
    assert sorted(path.name for path in (place / "compared").iterdir()) == [
        "quantization_report.html",
        "quantization_report.json",
    ]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--method", "gptq"], "gptq: calibration data is needed: --data FILE; rtn, fp8, nf4 alone do without"),
        (["--method", "rtn", "--kv-cache", "fp8"], "rtn with scales of a cache: calibration data is needed"),
        (["--data", "empty.jsonl"], "there is nothing to learn in empty.jsonl: no rows"),
        (["--compare", "rtn", "--method", "awq"], "leave the other choices out"),
        (["--method", "gptk", *DATA], "did you mean 'gptq'"),
        (["--compare", "rtn", "--bits", "3"], "leave the other choices out"),
        (["--compare", "rtn:x"], "METHOD:BITS"),
        (["--method", "rtn", "--text", "missing.txt"], "--text missing.txt: No such file or directory\n"),
        (["--method", "rtn", "--text", "latin.txt"], "--text latin.txt: byte 3 is no UTF-8 text\n"),
        (["--method", "rtn", "--out", "latin.txt/x"], "/latin.txt\n"),
        ([*DATA, "--samples", "1"], "too short"),
        (["--method", "rtn", "--samples", "4"], "--samples and --seq-len are of calibration data"),
    ],
)
def test_mistakes_are_said(words: list[str], why: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "empty.jsonl").touch()
    (place / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    assert main(["quantize", "model", "--out", "small", *words]) != 0
    assert why in capsys.readouterr().err
    assert not (place / "small").exists()


def test_stopped_by_hand(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quantize", "model", "--method", "nf4", *DATA, "--out", "small"]
    with monkeypatch.context() as patched:
        patched.setattr("tokenmill.evals.quantisation.write_folder", _ctrl_c)
        assert main(words) == 130
    assert "goes on from here; .small.quantising has what is done" in capsys.readouterr().err
    assert main(words) == 0
    said = capsys.readouterr()
    assert "layers were there already" in said.out
    assert "warning" not in said.err, "blocks of 64 are the format's, and nobody asked for other groups"


@pytest.mark.parametrize("choice", [["--method", "nf4"], ["--compare", "rtn"]])
def test_two_into_one_folder_the_second_is_refused(
    choice: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quantize", "model", *choice, *DATA, "--out", "small"]
    others: list[subprocess.CompletedProcess[str]] = []

    def while_it_works(*given: Any) -> Any:
        done = run_job(*given)
        there = sorted((place / ".small.quantising").rglob("*"))
        command = [sys.executable, "-m", "tokenmill", *words]
        others.append(subprocess.run(command, check=False, capture_output=True, text=True))
        assert sorted((place / ".small.quantising").rglob("*")) == there, "the first is undisturbed"
        return done

    monkeypatch.setattr("tokenmill.evals.quantisation.run_job", while_it_works)
    assert main(words) == 0
    (other,) = others
    assert other.returncode == 2
    assert other.stderr == (
        "Error: --out small: another command is writing there just now; wait for it, or give another folder\n"
    )
    assert (place / "small/quantization_report.json").is_file()
    assert not list(place.glob(".small*")), "the working folder is gone"


def test_a_mistake_leaves_no_working_folder(place: Path) -> None:
    assert main(["quantize", "nosuch", "--method", "rtn", "--out", "small"]) != 0
    assert not list(place.glob(".small*"))


def _ctrl_c(*_: object) -> None:
    raise KeyboardInterrupt
