"""Models under measurement: likelihoods against transformers, the same answers whatever the batch size, a server that
says what the model in process says, lm-eval on our engine where it is installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fakes.endpoint import endpoint
from fakes.tiny_llm import serving, tiny_app, tiny_folder, tiny_store
from tokenmill import LLM
from tokenmill.cli.app import main
from tokenmill.core.errors import ConfigError, OutOfContextError, UsageError
from tokenmill.evals.local import LocalSubject
from tokenmill.evals.remote import EndpointSubject
from tokenmill.evals.subject import Ask, Call, Identity, Writing
from tokenmill.evals.tasks.run import Settings, run_task
from tokenmill.evals.tasks.task import load_task

PAIRS = [
    ("the cat sat on", " the mat"),
    ("the cat sat on ", "the mat"),
    ("hello there, what is", " the capital of France?"),
    ("the dog", " sat"),
    ("Grüße, ", "naïve café"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("subjects") / "model")


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(folder, dtype="float32", deterministic=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("served")
    with serving(tiny_app(root, store=tiny_store(root))) as url:
        yield url


def subject(llm: LLM, batch_size: int = 16) -> LocalSubject:
    return LocalSubject(llm, Identity("tiny", "tiny"), batch_size=batch_size)


def lm_evals_way(folder: Path, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    """Log-likelihoods by transformers, cut into tokens as lm-eval's class for it does."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for context, continuation in pairs:
        spaces = len(context) - len(context.rstrip())
        whole = tokenizer.encode(context + continuation)
        start = len(tokenizer.encode(context[: len(context) - spaces]))
        with torch.no_grad():
            logprobs_TV = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        own = [(logprobs_TV[n - 1], whole[n]) for n in range(start, len(whole))]
        total = float(sum(row[token_id] for row, token_id in own))
        found.append((total, all(int(row.argmax()) == token_id for row, token_id in own)))
    return found


def test_likelihoods_are_lm_evals(folder: Path, llm: LLM) -> None:
    found = subject(llm).likelihoods([(Ask(text=context), end) for context, end in PAIRS])
    for one, (logprob, greedy) in zip(found, lm_evals_way(folder, PAIRS), strict=True):
        assert one.logprob == pytest.approx(logprob, abs=1e-4)
        assert one.greedy == greedy


def test_an_empty_context_is_the_token_that_texts_begin_with(llm: LLM) -> None:
    [alone] = subject(llm).likelihoods([(Ask(text=""), "the cat")])
    bos = llm.tokenizer.bos_token_id
    assert bos is not None
    ids = [bos, *llm.tokenizer.encode("the cat")]
    assert alone.logprob == pytest.approx(llm.score_ids([ids], [1])[0].total)
    assert alone.tokens == len(ids) - 1


def test_a_continuation_after_a_chat_begins_where_the_answer_would(llm: LLM) -> None:
    messages = ({"role": "user", "content": "hello"},)
    [found] = subject(llm).likelihoods([(Ask(messages=messages), "the cat")])
    prompt, own = llm.prompt_ids(list(messages)), llm.tokenizer.encode("the cat")
    assert found.logprob == pytest.approx(llm.score_ids([prompt + own], [len(prompt)])[0].total)


@pytest.fixture(scope="module")
def quiz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quiz")
    words = ["the", "cat", "sat", "log", "hello", "France"]
    choices = [
        {"prompt": f"the {one} and", "choices": [two, "on the log", "hello there"], "answer": n % 3}
        for n, (one, two) in enumerate(zip(words, [*words[3:], *words[:3]], strict=True))
    ]
    (root / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in choices))
    written = [{"prompt": f"what is the {word}", "answer": word} for word in words]
    (root / "written.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    return root


@pytest.mark.parametrize("name", ["choices", "written"])
def test_the_same_answers_whatever_the_batch_size(llm: LLM, quiz: Path, name: str) -> None:
    """To the last bit: likelihoods are among the details."""
    task, settings = load_task(str(quiz / f"{name}.jsonl")), Settings(max_tokens=6, shots=1)
    runs = [run_task(subject(llm, size), task, settings, use_cache=False) for size in (1, 4, 16)]
    assert len({json.dumps([run.summary, [one.as_dict() for one in run.samples]]) for run in runs}) == 1


def test_samples_differ_and_are_repeated_by_the_seed(llm: LLM, quiz: Path) -> None:
    task = load_task(str(quiz / "written.jsonl"))
    settings = Settings(max_tokens=4, samples=3, temperature=1.0, limit=2)
    runs = [run_task(subject(llm, size), task, settings, use_cache=False) for size in (1, 6)]
    assert runs[0].samples == runs[1].samples
    assert len({*runs[0].samples[0].details["outputs"]}) > 1


def test_a_template_without_a_place_for_tools_has_them_told(llm: LLM) -> None:
    """ChatML writes messages and nothing else: tools would be left out."""
    tool = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
    asked = Ask(messages=({"role": "user", "content": "time?"},), tools=(tool,))
    prompt = llm.tokenizer.decode(subject(llm)._prompt(asked), skip_special_tokens=False)
    assert '"name": "clock"' in prompt
    assert prompt.index("<tools>") < prompt.index("time?")


def test_what_does_not_fit_is_refused(llm: LLM) -> None:
    with pytest.raises(OutOfContextError, match="--shots"):
        subject(llm).likelihoods([(Ask(text="the cat " * 300), "sat")])
    with pytest.raises(OutOfContextError):
        subject(llm).write([Ask(text="the cat")], Writing(max_tokens=600))
    with pytest.raises(UsageError, match="no token"):
        subject(llm).likelihoods([(Ask(text="the cat"), "")])
    with pytest.raises(UsageError, match="batch"):
        subject(llm, 0)


# --- servers


def test_a_server_says_what_the_model_in_process_says(served: str, llm: LLM, tmp_path: Path) -> None:
    remote = EndpointSubject(f"{served}/v1", "tiny", tmp_path)
    asks = [(Ask(text=context), end) for context, end in PAIRS]
    for here, there in zip(subject(llm).likelihoods(asks), remote.likelihoods(asks), strict=True):
        assert there.logprob == pytest.approx(here.logprob, abs=1e-4)
        assert (there.tokens, there.greedy) == (here.tokens, here.greedy)
    chats = [Ask(messages=({"role": "user", "content": "hello"},)), Ask(text="the cat sat")]
    how = Writing(max_tokens=6, stop=("q1", "q2", "q3", "q4", "q5"))
    ours, theirs = subject(llm).write(chats, how), remote.write(chats, how)
    assert [one[0].text for one in theirs] == [one[0].text for one in ours]
    assert [one[0].completion_tokens for one in theirs] == [one[0].completion_tokens for one in ours]


def test_a_server_that_scores_no_prompts_is_told_from_one_that_does(tmp_path: Path) -> None:
    with endpoint(lambda body: (200, {}, json.dumps({"choices": [{"text": "x"}]}))) as fake:
        with pytest.raises(ConfigError, match="scores no prompts"):
            EndpointSubject(fake.url, "m", tmp_path).likelihoods([(Ask(text="a"), " b")])
        with pytest.raises(UsageError, match="--chat off"):
            EndpointSubject(fake.url, "m", tmp_path).likelihoods([(Ask(messages=({"role": "user"},)), " b")])


def test_a_servers_calls_and_stops(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": '{"x": 1}'}}
    broken = {"function": {"name": "f", "arguments": "{x"}}
    message = {"content": "one two three", "tool_calls": [call, broken]}
    document = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 3}}
    with endpoint(lambda body: (200, {}, json.dumps(document))) as fake:
        how = Writing(stop=("a", "b", "c", "d", "two"))
        [[reply]] = EndpointSubject(fake.url, "m", tmp_path).write([Ask(messages=({"role": "user"},))], how)
        assert len(fake.bodies[0]["stop"]) == 4
    assert reply.text == "one "
    assert reply.calls == (Call("f", {"x": 1}), Call("f", {"": "{x"}))
    assert reply.completion_tokens == 3


# --- the command


def test_the_command_measures_keeps_and_gates(
    folder: Path, quiz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))
    words = ["eval", "tasks", str(folder), "--tasks", str(quiz / "choices.jsonl"), "--limit", "3", "--json"]
    figures = []
    for size, condition, status in (("1", "acc<0", 0), ("16", "acc<=1", 1)):
        assert main([*words, "--batch-size", size, "--out", str(tmp_path / size), "--fail-if", condition]) == status
        said = capsys.readouterr()
        assert ("failed:" in said.err) == bool(status)
        figures.append(json.loads(said.out.splitlines()[-1])["tasks"][0])
    assert (figures[0].pop("cached"), figures[1].pop("cached")) == (False, True)
    assert figures[0] == figures[1]
    assert (tmp_path / "16" / "report.html").is_file()
    assert len((tmp_path / "16" / "samples" / "choices.jsonl").read_text().splitlines()) == 3
    assert main([*words[:3], "--tasks", "arithmetik"]) == 2
    assert "did you mean 'arithmetic'" in capsys.readouterr().err
    assert main([*words, "--chat", "perhaps"]) == 2


# --- lm-eval


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed; benchmarks/eval_parity.py")
def test_lm_eval_on_our_engine(folder: Path, llm: LLM) -> None:
    from tokenmill.evals.lm_eval_model import EngineLM, sampling

    model = EngineLM(llm, batch_size=2)
    found = model.loglikelihood([SimpleNamespace(args=pair) for pair in PAIRS], disable_tqdm=True)
    for (logprob, greedy), (wanted, is_greedy) in zip(found, lm_evals_way(folder, PAIRS), strict=True):
        assert logprob == pytest.approx(wanted, abs=1e-4)
        assert greedy == is_greedy
    [rolling] = model.loglikelihood_rolling([SimpleNamespace(args=("the cat",))])
    assert rolling == pytest.approx(subject(llm).likelihoods([(Ask(text=""), "the cat")])[0].logprob)
    [text] = model.generate_until([SimpleNamespace(args=("the cat", {"until": [" "], "max_gen_toks": 8}))])
    assert " " not in text
    with pytest.raises(UsageError, match="num_beams"):
        sampling({"num_beams": 4})
