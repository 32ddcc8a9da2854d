"""The verbs of ``plan`` as people call them: one JSON document, tables, pages, errors with the nearest possibility."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenmill.cli.app import main

SERVE = ["plan", "serve", "llama-3.1-8b", "--gpu", "h100"]
COST = ["plan", "cost", "--api", "gpt-4o", "--machine", "dual-rtx-5090", "--tokens-a-day", "5M"]


@pytest.fixture(autouse=True)
def _empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))


def answer(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> dict:  # type: ignore[type-arg]
    assert main([*words, "--json"]) == status
    out = capsys.readouterr().out
    return json.loads(out.splitlines()[-1])  # type: ignore[no-any-return]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) in (1, 2)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (SERVE, "one user alone"),
        (["plan", "train", "7B", "--tokens", "140B", "--gpu", "h100", "--days", "7"], "device hours"),
        (["plan", "scaling", "--budget", "1e21", "--served", "1T"], "Chinchilla"),
        ([*COST, "--model", "qwen2.5-coder-32b", "--quant", "awq"], "break-even"),
        (["plan", "choose", "--task", "code", "--gpu", "rtx-4090"], "qwen2.5-coder-32b"),
    ],
)
def test_tables_for_people(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert said in out
    assert "█" in out  # a chart
    assert all(len(line) <= 120 for line in out.splitlines())


def test_serve_answers_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, *SERVE, "--rps", "40", "--token-latency", "25", "--first-token", "500")
    assert found["point"]["token_latency_s"] <= 0.025
    assert found["gpus"] == found["replicas"] >= 2


def test_serve_writes_what_runs_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = answer(capsys, *SERVE, "--write", str(tmp_path / "w"))
    assert [Path(name).name for name in found["written"]] == ["serve.sh", "compose.yaml", "kubernetes.yaml"]
    assert "tokenmill serve llama-3.1-8b" in (tmp_path / "w" / "serve.sh").read_text(encoding="utf-8")


SLOTS = [
    *("--slot", "08:00-12:00=qwen3-coder-next:awq", "--slot", "13:00-17:00=deepseek-r1-distill-32b:awq"),
    *("--slot", "18:00-22:00=llama-3.3-70b:awq", "--prompt", "7936", "--output", "256"),
]


def test_a_day_on_one_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = answer(capsys, "plan", "serve", "--machine", "dual-rtx-5090", *SLOTS, "--write", str(tmp_path))
    assert found["fits"]
    seconds = found["switching_s"]
    assert seconds["1"] < seconds["2"] < seconds["stop"]
    assert "sleep?level=1" in (tmp_path / "switch.crontab").read_text(encoding="utf-8")
    assert "--enable-sleep-mode" in (tmp_path / "serve-8000.sh").read_text(encoding="utf-8")


def test_a_day_that_does_not_fit_is_shown_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "plan", "serve", "--machine", "rtx-4090-pc", *SLOTS, "--sleep", "2", status=1)
    assert [stretch["fits"] for stretch in found["stretches"]] == [False, True, False]


@pytest.mark.parametrize(
    "words",
    [
        SERVE,
        [*COST, "--machine-tokens-s", "800"],
        ["plan", "scaling", "--budget", "1e20"],
        ["plan", "train", "llama-3.1-8b", "--tokens", "1B", "--gpu", "h100", "--gpus", "8"],
    ],
)
def test_pages_are_written(capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str]) -> None:
    path = tmp_path / "page.html"
    assert answer(capsys, *words, "--html", str(path))["html"] == str(path)
    assert "<script>" in path.read_text(encoding="utf-8")


def test_scaling_fits_own_runs_and_draws_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from tokenmill.plan.fit import REFITTED

    rows = [f"{n},{d},{REFITTED.loss(n, d)}" for n in (1e6, 1e7, 1e8) for d in (1e8, 1e9, 1e10)]
    table = tmp_path / "runs.csv"
    table.write_text("parameters,tokens,loss\n" + "\n".join(rows), encoding="utf-8")
    path = tmp_path / "law.html"
    found = answer(capsys, "plan", "scaling", "--budget", "1e21", "--runs", str(table), "--html", str(path))
    assert found["fit"]["alpha"]["value"] == pytest.approx(REFITTED.alpha, rel=1e-3)
    assert found["fit"]["best"]["parameters"]["value"] == pytest.approx(REFITTED.best(1e21)[0], rel=1e-3)
    assert path.read_text(encoding="utf-8").count("<figure>") == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "serve", "llama-3.1-8b", "--gpu", "h10"], "did you mean 'h100"),
        (["plan", "serve", "lama-3.1-8b", "--gpu", "h100"], "did you mean 'llama-3.1-8b'"),
        ([*SERVE, "--gpus", "3"], "2 can"),
        ([*SERVE, "--prompt", "200000"], "131,072"),
        ([*SERVE, "--quant", "awk"], "did you mean 'awq'"),
        (["plan", "serve", "llama-3.1-8b"], "--gpu"),
        (["plan", "serve", "--slot", "08:00-12:00=qwen3-32b"], "--machine"),
        (["plan", "serve", "llama-3.1-8b", "--machine", "dual-rtx-5090"], "--slot"),
        (["plan", "train", "7B", "--tokens", "1B", "--gpu", "h100"], "--days"),
        (["plan", "train", "7B", "--tokens", "lots", "--gpu", "h100", "--gpus", "1"], "--tokens"),
        (["plan", "train", "7B", "--tokens", "1B", "--gpu", "h100", "--gpus", "1", "--optimizer", "adam"], "'adamw'"),
        (["plan", "scaling"], "--budget"),
        (["plan", "scaling", "--gpu-hours", "5"], "--gpu"),
        (COST, "--machine-tokens-s"),
        ([*COST[:2], "--api", "gpt4", *COST[4:], "--machine-tokens-s", "1"], "did you mean 'gpt"),
        (["plan", "choose", "--task", "coding"], "did you mean 'code'"),
        (["plan", "choose", "--task", "code", "--users", "4"], "--gpu"),
        (["plan", "choose", "--task", "code", "--privacy", "hippa"], "did you mean 'hipaa'"),
    ],
)
def test_impossible_input_names_the_nearest_possibility(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert said in refused(capsys, *words)


def test_own_prices_win(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "home" / "plan"
    folder.mkdir(parents=True)
    (folder / "apis.yaml").write_text("entries:\n  gpt-4o: {input_usd: 0.0, output_usd: 0.0}\n", encoding="utf-8")
    found = answer(capsys, *COST, "--machine-tokens-s", "800")
    assert found["bill"]["api"] == 0
    assert found["break_even_tokens_a_day"] == 0


def test_old_prices_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    main([*COST, "--machine-tokens-s", "800"])
    assert "was read on 2026-02-23" in capsys.readouterr().err
