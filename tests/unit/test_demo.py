"""The demo's frame: a stage that fails ends it, and its report holds hostile answers as text."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    spec = importlib.util.spec_from_file_location("demo", EXAMPLES / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    return module


def test_all_stages_pass(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(stage: object) -> str:
        stage.commands.append("tokenmill run m")  # type: ignore[attr-defined]
        stage.figure("answer", "7 <b>tokens</b>")  # type: ignore[attr-defined]
        stage.quote = "<script>alert(1)</script> & more"  # type: ignore[attr-defined]
        return "[red]fine"

    monkeypatch.setattr(demo, "STAGES", [("Ask", "why <not>", ask)])
    assert demo.main() == 0
    out = capsys.readouterr().out
    assert "[red]fine" in out
    page = (tmp_path / "runs" / "latest" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page
    for text in ("every stage passed", "why &lt;not&gt;", "7 &lt;b&gt;tokens&lt;/b&gt;", "tokenmill run m"):
        assert text in page
    assert "http://" not in page
    assert "https://" not in page, "the report is read offline"


def test_a_stage_that_fails_ends_the_demo(demo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(stage: object) -> str:
        raise demo.StageFailedError("no Paris")

    monkeypatch.setattr(demo, "STAGES", [("Ask", "", fail), ("Later", "", lambda stage: "never")])
    assert demo.main() == 1
    page = (tmp_path / "runs" / "latest" / "report.html").read_text(encoding="utf-8")
    assert "a stage failed" in page
    assert "no Paris" in page
    assert "Later" not in page


def test_a_demo_that_was_stopped_goes_on(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def make(stage: object) -> str:
        told.append("make")
        stage.commands.append("tokenmill make")  # type: ignore[attr-defined]
        stage.figure("size", "7 MB")  # type: ignore[attr-defined]
        stage.known["made"] = "here"  # type: ignore[attr-defined]
        return "made"

    def use(stage: object) -> str:
        told.append(stage.known["made"])  # type: ignore[attr-defined]
        if len(told) < 3:
            raise demo.StageFailedError("not today")
        return "used"

    monkeypatch.setattr(demo, "STAGES", [("Make", "", make), ("Use", "", use)])
    assert demo.main() == 1
    assert demo.main() == 0
    assert told == ["make", "here", "here"], "what was done is not done again"
    folders = [path for path in demo.RUNS.iterdir() if not path.is_symlink()]
    assert len(folders) == 1
    page = (folders[0] / "report.html").read_text(encoding="utf-8")
    assert "7 MB" in page
    assert "every stage passed" in page
    assert demo.unfinished() is None
    monkeypatch.setattr(demo, "STAGES", [*demo.STAGES, ("More", "", use)])
    assert demo.unfinished() is not None
    monkeypatch.setattr(demo, "QUICK", not demo.QUICK)
    assert demo.unfinished() is None, "other settings are another demo"


def test_the_question_is_checked(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = demo.Stage("Ask", "")
    answer = {"text": "Lyon", "prompt_tokens": 1, "prompt_s": 1.0, "completion_tokens": 1, "decode_s": 0, "load_s": 1.0}

    def answered(self: object, *words: str) -> dict[str, object]:
        stage.commands.append("tokenmill run")
        return answer

    monkeypatch.setattr(demo.Stage, "tokenmill", answered)
    with pytest.raises(demo.StageFailedError, match="Lyon"):
        demo.first.ask_it(stage)
    answer["text"] = "It is Paris."
    assert demo.first.ask_it(stage) == "Paris"


@pytest.mark.parametrize(
    ("after", "passes"),
    [("HOMEWORK, n. A tax on evenings.", True), ("Homework is work done at home.", False)],
)
def test_tuning_must_show(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: str, passes: bool
) -> None:
    folder = tmp_path / "2026-01-01_00-00-00-lora"
    folder.mkdir()
    step = {"loss": 3.0, "tokens_per_s": 100.0, "total_tokens": 1024, "mfu": 0.4, "memory_mb": 900.0}
    rows = [{"step": n, **step} for n in (1, 2)] + [{"step": 2, "eval_loss": 2.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def answered(self: object, *words: str) -> dict[str, object]:
        stage.commands.append(" ".join(words))
        if words[0] == "train":
            return {"folder": str(folder), "model": str(folder / "model")}
        return {"text": after if "--adapter" in words else "Homework is an assignment."}

    monkeypatch.setattr(demo.Stage, "tokenmill", answered)
    stage = demo.Stage("Fine-tune", "", seconds=1.0)
    if not passes:
        with pytest.raises(demo.StageFailedError, match="form after tuning"):
            demo.tune.tune_it(stage)
        return
    demo.tune.tune_it(stage)
    assert "before: Homework is an assignment." in stage.quote
    assert f"after: {after}" in stage.quote
    page = demo.write_report([stage], tmp_path / "runs" / "demo").read_text(encoding="utf-8")
    assert "<svg" in page
    assert f'href="../{folder.name}/report.html"' in page


def test_the_word_that_is_asked_for_is_not_among_the_examples(demo: ModuleType) -> None:
    assert demo.tune.WORD not in (EXAMPLES / demo.tune.DEFINITIONS).read_text(encoding="utf-8").lower()
