"""``tokenmill train`` and ``tokenmill data`` from outside: results, plans, sweeps, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes.tiny_llm import tiny_folder
from tokenmill.cli.app import main
from tokenmill.config.compose import compose
from tokenmill.core.errors import ConfigError
from tokenmill.models import load_model, load_tokenizer
from tokenmill.nn import cost
from tokenmill.train.plan import plan_run
from tokenmill.train.run import RunResult
from tokenmill.train.sweep import sweep_grid, sweep_search


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    tiny_folder(tmp_path / "model")
    rows = [{"prompt": f"what is {n}?", "completion": f"it is {n}"} for n in range(40)]
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n{broken\n")
    return file


@pytest.fixture
def book(tmp_path: Path) -> Path:
    file = tmp_path / "book.txt"
    file.write_text("".join(f"the {n}th fox jumps over dog {n * n} and sleeps\n" for n in range(3000)))
    return file


LORA = ["train", "lora", "model=model", "data=chats.jsonl", "seq_len=64", "sample_tokens=0", "trackers=[]"]


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_run_ends_with_its_result(chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LORA, "steps=2", "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out.splitlines()[-1])
    assert (result["step"], result["reason"]) == (2, "finished")
    assert (Path(result["model"]) / "adapter_config.json").is_file()
    assert Path("runs/latest").resolve() == Path(result["folder"])
    assert "chats.jsonl:41: not JSON" in printed.err, "what is wrong with the data is said before it is trained on"
    text = (Path(result["folder"]) / "config.yaml").read_text()
    assert "steps: 2  # override" in text
    assert "rank: 16  # recipe" in text
    assert "dtype: " in text
    assert "# derived: " in text
    assert main(["train", "--resume", "runs/latest", "steps=3", "--json"]) == 0
    assert last_line(capsys)["step"] == 3


def test_a_dry_run_trains_nothing(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "pretrain", "size=300K", f"data={book}", "micro_batch=2", "accumulate=1", "--dry-run"]) == 0
    text = capsys.readouterr().out
    for part in ("derived", "arXiv 2401.02954", "steps of", "memory     about", "time       "):
        assert part in text
    assert not Path("runs").exists()


def test_a_grid(chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LORA, "steps=1", "--sweep", "lr=1e-4,1e-2", "--json"]) == 0
    document = last_line(capsys)
    assert [run["overrides"] for run in document["runs"]] == [["lr=0.0001"], ["lr=0.01"]]
    assert len({run["folder"] for run in document["runs"]}) == 2
    assert document["best"] == min(document["runs"], key=lambda run: run["value"])
    assert json.loads((Path(document["folder"]) / "summary.json").read_text())["best"] == document["best"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "name a recipe first: bottleneck"),
        (["model=x"], "name a recipe first"),
        (["lorra"], "did you mean 'lora'"),
        (["lora", "model=m", "data=x", "rank=3"], "did you mean 'adapter.rank'"),
        (["lora", "model=model", "data=nowhere.jsonl"], "no such file"),
        (["lora", "--resume", "runs/x"], "'lora' is too much"),
        (["--resume", "nowhere"], "nowhere"),
        (["lora", "model=m", "data=x", "--dry-run", "--sweep", "lr=1,2"], "do not go together"),
        (["lora", "model=m", "data=x", "--sweep", "lrr=1,2"], "did you mean 'lr'"),
        (["lora", "model=m", "data=x", "--sweep", "lr=-1,2"], "greater than 0"),
    ],
)
def test_mistakes_are_said(chats: Path, words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *words]) in (1, 2)
    printed = capsys.readouterr()
    assert part in printed.err
    assert "bug in tokenmill" not in printed.err


def test_data_show(chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", "chats.jsonl", "--model", "model", "--rows", "1"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("chats.jsonl:1: ")
    assert text.count("⟦") == text.count("⟧") == 1
    learned = text[text.index("⟦") + 1 : text.index("⟧")].replace("·", "")
    assert learned == "it is 0<|im_end|>"
    assert main(["data", "show", "chats.jsonl", "--model", "model", "--line", "41", "--json"]) == 0
    [row] = last_line(capsys)["rows"]
    assert row["problem"].startswith("not JSON")
    assert main(["data", "show", "chats.jsonl", "--model", "model", "--train-on", "me"]) == 2
    assert "train_on" in capsys.readouterr().err


# --- sweeps without training


def result(value: float, **more: Any) -> RunResult:
    return RunResult(Path("runs/x"), more.pop("reason", "finished"), 1, {"loss": 9.0, "eval_loss": value}, None)


def test_a_failed_run_is_a_line_of_the_table(tmp_path: Path) -> None:
    def run(overrides: list[str]) -> RunResult:
        if overrides == ["lr=2"]:
            raise ConfigError("broken\nby lr")
        return result(float(overrides[0].partition("=")[2]) if overrides != ["lr=3"] else float("nan"))

    *_, sweep = sweep_grid(["lr=5,2,1,3"], run, out=tmp_path, recipe="x")
    assert [row[:2] for row in sweep.table()] == [("lr=1", "1.0000"), ("lr=5", "5.0000"), ("lr=2", ""), ("lr=3", "")]
    assert sweep.best is not None
    assert sweep.best.overrides == ["lr=1"]
    saved = json.loads((sweep.folder / "summary.json").read_text())
    assert [run["problem"] for run in saved["runs"]] == [None, "broken", None, "its loss is nan"]


def test_a_stopped_run_ends_the_sweep(tmp_path: Path) -> None:
    *_, sweep = sweep_grid(["lr=1,2,3"], lambda overrides: result(1.0, reason="stopped"), out=tmp_path, recipe="x")
    assert len(sweep.runs) == 1


def test_the_search_finds_the_bottom(tmp_path: Path) -> None:
    def run(overrides: list[str]) -> RunResult:
        values = dict(text.split("=") for text in overrides)
        return result((float(values["lr"]) - 0.3) ** 2 + (values["optimizer"] != "'muon'"))

    def searched() -> Any:
        spaces = ["lr=interval(0.01,1)", "optimizer=adamw,muon"]
        *_, sweep = sweep_search(spaces, run, trials=30, seed=0, out=tmp_path, recipe="x")
        return sweep

    sweep = searched()
    assert len(sweep.runs) == 30
    assert sweep.best.value < 0.01
    assert [run.overrides for run in searched().runs] == [run.overrides for run in sweep.runs], "seeded"


# --- plans


def test_a_plan_of_a_new_model_is_the_model_that_is_trained(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [
        "size=300K",
        "data=book.txt",
        "steps=2",
        "micro_batch=1",
        "accumulate=1",
        "sample_tokens=0",
        "seq_len=32",
    ]
    plan = plan_run(compose("pretrain", [*overrides, "trackers=[]"]))
    assert plan.decoder is not None
    assert main(["train", "pretrain", *overrides, "trackers=[]", "--json"]) == 0
    document = last_line(capsys)
    model, tokenizer = load_model(Path(document["model"])), load_tokenizer(Path(document["model"]))
    assert sum(p.numel() for p in model.network.parameters()) == cost.parameters(plan.decoder)
    assert tokenizer.encode("the fox") == plan.tokenizer.encode("the fox")
    assert tokenizer.encode("the fox")[0] == tokenizer.bos_token_id
    assert torch.isfinite(torch.tensor(list(document["metrics"].values()))).all()


def test_nothing_is_left_open(book: Path) -> None:
    plan = plan_run(compose("pretrain", [f"data={book}", "size=1M"]))
    recipe = plan.recipe
    for name in ("seq_len", "steps", "lr", "eval_every", "save_every", "sample_every", "device", "batch_tokens"):
        assert getattr(recipe, name) is not None, name
        assert plan.composed.origins[name].startswith("derived: "), name
    assert recipe.dtype != "auto"
    again = plan_run(plan.composed)
    assert (again.steps, again.accumulate, again.recipe.lr) == (plan.steps, plan.accumulate, recipe.lr)
    assert plan.tokens_per_step == recipe.batch_tokens


def test_a_plan_of_two_processes_keeps_the_batch(book: Path) -> None:
    composed = compose("pretrain", [f"data={book}", "size=300K", "batch_tokens=2048", "micro_batch=1"])
    one, two = plan_run(composed), plan_run(composed, world_size=2)
    assert one.tokens_per_step == two.tokens_per_step == 2048
    assert (one.steps, one.accumulate) == (two.steps, 2 * two.accumulate)


def test_a_row_beyond_the_models_context_is_refused(chats: Path) -> None:
    with pytest.raises(ConfigError, match="positions"):
        plan_run(compose("lora", ["model=model", "data=chats.jsonl", "seq_len=100000"]))
