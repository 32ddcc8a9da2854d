"""One rule of exit statuses for every verb: 2 where what was typed is wrong, 1 where the work failed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from fakes.tiny_llm import tiny_folder
from tokenmill.cli import app as cli

MODELFILES = {
    "unknown": "FRUM ./model\n",
    "no-base": "FROM ./nowhere.gguf\n",
    "no-adapter": "FROM ./model\nADAPTER ./nowhere\n",
    "template": 'FROM ./model\nTEMPLATE """{{ .Prompt | foo }}"""\n',
    "parameter": "FROM ./model\nPARAMETER foo 3\n",
    "name": "FROM a..b//c\n",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a text, a row of data, and Modelfiles with a mistake each."""
    folder = tmp_path_factory.mktemp("statuses")
    tiny_folder(folder / "model")
    (folder / "text.txt").write_text("the cat sat on the mat. " * 200)
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    for name, text in MODELFILES.items():
        (folder / f"{name}.Modelfile").write_text(text)
    (folder / "broken.gguf").write_bytes(b"GGUF")
    return folder


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("TOKENMILL_HOME", str(place / "home"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))


# verb and what is missing or malformed among its words
WRONG = (
    """
run ./nowhere hi
run a//b hi
run ./model hi --adapter nowhere
serve ./nowhere --port 0
show ./nowhere
show a/b/c/d
pull ./nowhere
pull a//b
pull pypi:thing
pull http://example.com/x.gguf
cp ./model a..b
cp ./model ./b
rm a//b
rm ./nowhere
push ./nowhere hf:a/b
merge ./model nowhere --out out
merge ./model ./nowhere --method linear --out out
export hf ./model --adapter nowhere --out out
export vllm ./model --results nowhere --out out
export gguf ./nowhere --out out.gguf
export gguf ./model --lora nowhere --out out.gguf
export gguf ./model --imatrix nowhere --out out.gguf
export ollama ./model --calibrate nowhere --out out
quantize ./model --data nowhere --out out
quantize ./model --method rtn --text nowhere --out out
prune ./model --method wanda --data nowhere --out out
train nowhere.yaml
train lora model=./model data=nowhere
train lora model=a//b data=rows.jsonl
train --resume nowhere
label nowhere
data run web input=nowhere output=out
data show nowhere --model ./model
data mix nowhere -o out
data classifier train a=nowhere b=rows.jsonl --to out
data constitution nowhere
data tools check nowhere
data tools make nowhere --out out
tokenizer train nowhere --out out
tokenizer train text.txt --chat-template nowhere --out out
tokenizer compare ./nowhere --text text.txt
tokenizer encode nowhere --tokenizer ./model --out out
eval ppl --model ./model --text nowhere
eval ppl --model ./model --text=nowhere
eval ppl --model ./nowhere --text text.txt
eval tasks ./model --tasks arithmetic --adapter nowhere
eval judge ./model --judge ./model --questions nowhere
eval judge ./model --judge ./model --rubric nowhere
eval memorization ./model --data nowhere
eval leakage nowhere --against text.txt
eval reward ./model --data nowhere
bench latency --model ./nowhere
plan memory ./nowhere
plan scaling --runs nowhere --budget 1e18
create new -f nowhere
create new -f .
create a//b -f unknown.Modelfile
""".strip().splitlines()
    + [f"create new -f {name}.Modelfile" for name in MODELFILES]
)


@pytest.mark.parametrize("words", WRONG)
def test_what_was_typed_is_wrong(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 2
    said = capsys.readouterr().err
    assert "Error: " in said
    assert "No such option" not in said, "the words are to be wrong in one place only"


@pytest.mark.parametrize("words", ["show nobody", "cp nobody new", "rm nobody", "push nobody", "plan memory nobody"])
def test_a_model_that_is_nowhere_is_a_failure(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 1
    assert "nobody" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "run ./broken.gguf hi",
        "create new -f broken.Modelfile",
        "export gguf ./model --imatrix broken.gguf --out o.gguf",
    ],
)
def test_a_file_that_is_broken_is_a_failure(words: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "broken.Modelfile").write_text("FROM ./text.txt\n")
    assert cli.main(words.split()) == 1
    assert "Error: " in capsys.readouterr().err


def test_a_file_of_our_own_that_is_gone_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's error about a path that nobody typed is not the person's mistake."""

    def gone(_: list[str]) -> int:
        raise FileNotFoundError(2, "No such file or directory", "elsewhere")

    monkeypatch.setattr(cli, "_run", gone)
    assert cli.main(["list"]) == 1
    assert cli.main(["show", "elsewhere"]) == 2
