"""Whole commands with the default model: what they print where, what they exit with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shell import Run, document

QUESTION = "What is the capital of France?"
GREEDY = ("--temperature", "0", "--max-tokens", "32")


def test_one_shot_prints_the_answer_and_nothing_else(tokenmill: Run) -> None:
    done = tokenmill("run", "smollm2:135m", QUESTION, *GREEDY)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Paris" in done.stdout
    assert done.stdout.endswith("\n")
    assert not done.stdout.endswith("\n\n")


def test_a_pipe_is_the_prompt(tokenmill: Run) -> None:
    piped = tokenmill("run", "smollm2:135m", *GREEDY, input=QUESTION)
    assert piped.returncode == 0, piped.stderr
    assert "Paris" in piped.stdout


def test_a_pipe_follows_the_prompt(tokenmill: Run) -> None:
    both = tokenmill("run", "smollm2:135m", "One:", *GREEDY, input="two")
    assert both.stdout == tokenmill("run", "smollm2:135m", "One:\n\ntwo", *GREEDY).stdout


def test_json_has_the_answer_and_the_figures(tokenmill: Run) -> None:
    done = tokenmill("run", "smollm2:135m", QUESTION, *GREEDY, "--json", "--verbose")
    answer = document(done)
    assert "Paris" in answer["text"]
    assert answer["finish_reason"] in ("stop", "length")
    assert answer["prompt_tokens"] > 5
    assert 0 < answer["completion_tokens"] <= 32
    assert answer["total_s"] > answer["prompt_s"] > 0
    assert "eval rate" in done.stderr


def test_flags_reach_the_sampler(tokenmill: Run) -> None:
    short = document(tokenmill("run", "smollm2:135m", QUESTION, "--temperature", "0", "--max-tokens", "3", "--json"))
    assert (short["completion_tokens"], short["finish_reason"]) == (3, "length")
    stopped = document(tokenmill("run", "smollm2:135m", QUESTION, *GREEDY, "--stop", "Paris", "--stop", "§", "--json"))
    assert "Paris" not in stopped["text"]
    assert stopped["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("show", "no-such-model-here"), 1, "no-such-model-here"),
        (("show", "smollm2:135n"), 1, "smollm2:135m"),
        (("show", "smollm2:135m", "--license", "--system"), 2, "one part"),
        (("run", "smollm2:135m", "x", "--temperature", "-1"), 2, "temperature"),
        (("run", "smollm2:135m", "x", "--format", "yaml"), 2, "--format"),
        (("run", "smollm2:135m", "x", "--ctx-size", "1000000"), 2, "8192"),
        (("run", "smollm2:135m", "word " * 200, "--ctx-size", "64"), 2, "64"),
        (("run", "smollm2:135m"), 2, "prompt is empty"),
        (("run", "smollm2:135m", "x", "--adapter", "nowhere"), 2, "nowhere"),
        (("create", "x", "-f", "nowhere"), 2, "nowhere"),
        (("create", "../x", "-f", "-"), 2, "../x"),
        (("rm", "no-such-model-here"), 1, "no-such-model-here"),
        (("eval", "ppl", "--model", "smollm2:135m", "--text", "nowhere"), 2, "nowhere"),
        (("pull", "hf:../../x"), 2, "hf:"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_mistakes_end_in_one_message(tokenmill: Run, words: tuple[str, ...], status: int, said: str) -> None:
    # an empty pipe, so that `run` without a prompt is not a chat
    done = tokenmill(*words, input="")
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_list_and_show(tokenmill: Run) -> None:
    header, *rows = tokenmill("list").stdout.splitlines()
    assert header.split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert any(row.startswith("smollm2:135m ") and " 98 MB " in row for row in rows)
    names = [model["name"] for model in document(tokenmill("list", "--json"))["models"]]
    assert "smollm2:135m" in names
    shown = tokenmill("show", "smollm2:135m").stdout
    for word in ("llama", "134.52M", "8192", "576", "Q4_1", "completion", "Apache-2.0"):
        assert word in shown
    details = document(tokenmill("show", "smollm2:135m", "--json"))["details"]
    assert (details["parameters"], details["quantization"]) == (134_515_008, "Q4_1")
    assert "<|im_start|>" in tokenmill("show", "smollm2:135m", "--template").stdout
    assert "blk.0.attn_q.weight" in tokenmill("show", "smollm2:135m", "--verbose").stdout


def test_a_model_of_ones_own(tokenmill_own: Run, tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text(
        'FROM base\nSYSTEM "Talk like a pirate."\nPARAMETER num_predict 5\n'
        "MESSAGE user Are you there?\nMESSAGE assistant Aye.\n",
        encoding="utf-8",
    )
    assert document(tokenmill_own("create", "pirate", "-f", "Modelfile", "--json"))["status"] == "success"
    assert tokenmill_own("show", "pirate", "--system").stdout == "Talk like a pirate.\n"
    system = ("--system", "Talk like a pirate.")
    without_turns = document(tokenmill_own("run", "base", "Hi", *system, "--max-tokens", "1", "--json"))
    pirate = document(tokenmill_own("run", "pirate", "Hi", "--json"))
    assert pirate["completion_tokens"] <= 5
    assert pirate["prompt_tokens"] > without_turns["prompt_tokens"] + 8
    over = document(tokenmill_own("run", "pirate", "Hi", "--max-tokens", "2", "--json"))
    assert over["completion_tokens"] == 2, "a flag wins over the Modelfile"

    assert tokenmill_own("cp", "pirate", "sailor").returncode == 0
    assert tokenmill_own("rm", "pirate").returncode == 0
    assert [model["name"] for model in document(tokenmill_own("list", "--json"))["models"]] == [
        "sailor:latest",
        "base:latest",
    ]
    assert document(tokenmill_own("run", "sailor", "Hi", "--json"))["text"] == pirate["text"]


def test_ppl(tokenmill: Run, tmp_path: Path) -> None:
    text = "The quick brown fox jumps over the lazy dog. Then it rests for a while under the old tree. " * 12
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    command = ("eval", "ppl", "--model", "smollm2:135m", "--text", "text.txt", "--ctx", "64")
    figures = document(tokenmill(*command, "--json"))
    assert 1 < figures["ppl"] < 5, "a text that repeats itself is easy"
    assert figures["bits_per_byte"] > 0
    assert figures["tokens"] % 31 == 0, "of each window of 64, the second half less its first token"
    assert f"{figures['ppl']:.4f}" in tokenmill(*command).stdout


def test_bench(tokenmill: Run) -> None:
    command = ("bench", "throughput", "--model", "smollm2:135m")
    figures = document(tokenmill(*command, "--batch", "1,2", "--prompt-len", "16", "--gen-len", "3", "--json"))
    assert figures["startup_s"] > 0
    assert figures["threads"] >= 1
    assert [row["batch"] for row in figures["results"]] == [1, 2]
    assert all(row["prefill_tok_s"] > 0 and row["decode_tok_s"] > 0 for row in figures["results"])
    assert all(row["peak_rss_mb"] > 100 for row in figures["results"])
    assert tokenmill(*command, "--batch", "none").returncode == 2


def test_doctor(tokenmill: Run) -> None:
    report = document(tokenmill("doctor", "--json"))
    assert report["machine"]["threads"] >= 1
    assert report["operations"]["attention"][-1] == "reference"
    assert report["software"]["torch"]
    assert isinstance(report["advice"], list)


def test_a_json_answer(tokenmill: Run) -> None:
    schema = json.dumps({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
    done = tokenmill("run", "smollm2:135m", QUESTION, "--format", schema, *GREEDY)
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout)["city"], str)
