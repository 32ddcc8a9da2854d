"""Reward models: written as other programs read them, the same scores everywhere, served, judged, in company."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

import tiny
import tokenmill
from fakes.tiny_llm import tiny_app, tiny_folder, tiny_store
from tokenmill.align.reward_model import Ensemble, RewardModel, vote
from tokenmill.cli.app import main
from tokenmill.core.errors import ConfigError, UsageError
from tokenmill.engine.reward import reward
from tokenmill.evals.calibration import judge_scores
from tokenmill.models import load_model
from tokenmill.models.scorer import add_score_head

TALK = [
    [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "the cat sat"}],
    [{"role": "user", "content": "what is the capital"}, {"role": "assistant", "content": "mat"}],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of a tiny base, and pairs: the chosen answers say "cat"."""
    place = tmp_path_factory.mktemp("reward")
    tiny_folder(place / "base")
    draw = random.Random(1)
    rows = []
    for i in range(40):
        words = draw.choices(["the", "log", "sat", "on", "hello"], k=4)
        chosen = [*words[:2], "cat", *words[2:]]
        rows.append({"prompt": f"what is {i}", "chosen": " ".join(chosen), "rejected": " ".join([*words, "dog"])})
    (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows[:30])))
    (place / "fresh.jsonl").write_text("\n".join(map(json.dumps, rows[30:])))
    recipe = {
        "recipe": "reward",
        "objective": "reward",
        "model": str(place / "base"),
        "data": {"path": str(place / "pairs.jsonl"), "cache": False},
        "adapter": {"kind": "lora", "rank": 8},
        "seq_len": 256,
        "steps": 20,
        "lr": 1e-2,
        "dtype": "float32",
        "trackers": [],
        "out": str(place / "runs"),
    }
    result = tokenmill.train(recipe, watchers=[])
    assert result.model is not None
    result.model.rename(place / "model")
    return place


def test_transformers_gives_the_same_scores(folder: Path) -> None:
    """Read as a sequence classification with one label, padded batches too."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "model", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    assert type(theirs).__name__ == "LlamaForSequenceClassification"
    assert theirs.config.num_labels == 1
    ours = RewardModel.load(folder / "model", dtype="float32")
    scores = ours.score(TALK)
    ids = [tokenizer.apply_chat_template(talk, return_dict=False) for talk in TALK]
    longest = max(map(len, ids))
    pad = theirs.config.pad_token_id
    rows = torch.tensor([row + [pad] * (longest - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    with torch.no_grad():
        want = theirs(input_ids=rows, attention_mask=mask).logits[:, 0]
    torch.testing.assert_close(torch.tensor(scores), want, rtol=1e-5, atol=1e-5)


def test_it_tells_fresh_answers_apart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On pairs that it has never seen, by the command that people use."""
    model, data = str(folder / "model"), str(folder / "fresh.jsonl")
    assert main(["eval", "reward", model, model, "--voting", "cautious", "--data", data, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["accuracy"] > 0.9
    assert found["pairs"] == 10
    assert found["log_loss"] < math.log(2)


def test_a_score_does_not_depend_on_its_company(folder: Path) -> None:
    model = RewardModel.load(folder / "model", dtype="float32")
    together = model.score([*TALK, *TALK])
    assert together == pytest.approx([*model.score(TALK[:1]), *model.score(TALK[1:])] * 2, abs=1e-5)


def test_it_writes_nothing(folder: Path) -> None:
    """Loaded for serving, with the kernels' own layout where there are any, it scores as ever and generates nothing."""
    llm = tokenmill.LLM(str(folder / "model"))
    ids = [llm.tokenizer.encode_chat(talk, add_generation_prompt=False) for talk in TALK]
    want = RewardModel.load(folder / "model", dtype="float32").score(TALK)
    assert reward(llm.model, ids) == pytest.approx(want, abs=1e-3)
    with pytest.raises(UsageError, match="reward model"):
        llm.chat(TALK[0][:1])


def test_a_writer_scores_nothing(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no reward model"):
        RewardModel.load(folder / "base")
    with pytest.raises(UsageError, match="scores none"):
        reward(load_model(folder / "base").decoder, [[1, 2]])


def test_served(folder: Path, tmp_path: Path) -> None:
    """vLLM's route: conversations, or prompts and answers; the same numbers as in Python."""
    store = tiny_store(tmp_path)
    store.create("judge", f"FROM {folder / 'model'}", tmp_path)
    want = RewardModel.load(folder / "model", dtype="float32").score(TALK)
    with TestClient(tiny_app(tmp_path, store=store), base_url="http://127.0.0.1") as client:
        got = client.post("/v1/score", json={"model": "judge", "messages": TALK}).json()
        assert [one["score"] for one in got["data"]] == pytest.approx(want, abs=1e-4)
        assert got["usage"]["prompt_tokens"] > 0
        texts = {"text_1": [talk[0]["content"] for talk in TALK], "text_2": [talk[1]["content"] for talk in TALK]}
        same = client.post("/v1/score", json={"model": "judge", **texts}).json()
        assert [one["score"] for one in same["data"]] == [one["score"] for one in got["data"]]
        one = client.post("/v1/score", json={"model": "judge", "messages": TALK[0]}).json()
        assert len(one["data"]) == 1
        store.create("other", f"FROM {folder / 'model'}\nPARAMETER seed 1", tmp_path)
        both = {"model": ["judge", "other"], "voting": "min", "messages": TALK}
        for told, score in zip(client.post("/v1/score", json=both).json()["data"], got["data"], strict=True):
            assert told["score"] == score["score"]
            assert told["members"] == [score["score"]] * 2
        for wrong, part in (
            ({"model": "tiny", "messages": TALK}, "scores none"),
            ({"model": "judge"}, "messages"),
            ({"model": "judge", "messages": TALK, "text_1": "a", "text_2": "b"}, "one of the two"),
            ({"model": "judge", "text_1": ["a", "b"], "text_2": ["c"]}, "2 prompts and 1 answers"),
            ({"model": "judge", "messages": []}, "messages"),
            ({"model": "judge", "text_1": "a", "text_2": ["x " * 2000]}, "tokens"),
        ):
            reply = client.post("/v1/score", json=wrong)
            assert reply.status_code == 400, reply.text
            assert part in reply.json()["error"]["message"]
        chat = client.post("/v1/chat/completions", json={"model": "judge", "messages": TALK[0][:1]})
        assert chat.status_code == 400
        assert "reward model" in chat.json()["error"]["message"]


THEIRS = ("llama-tied", "gpt2", "gemma3", "phi3", "qwen3_moe")
"""Families whose files are given to transformers: special names, fused weights, experts. All passed when it was written
but Granite, for which transformers has no such class."""


@pytest.mark.parametrize("name", sorted(tiny.FAMILIES))
def test_every_family_scores(tmp_path: Path, name: str) -> None:
    """A head on any decoder, written and read back; by transformers too, where the names are special."""
    transformers = pytest.importorskip("transformers")
    model = add_score_head(load_model(tiny.write(tiny.FAMILIES[name], tmp_path / "a")), seed=0, pad_token_id=0)
    model.save(tmp_path / "b")
    want = reward(model.decoder, tiny.PROMPTS[:3])
    assert reward(load_model(tmp_path / "b").decoder, tiny.PROMPTS[:3]) == want
    if name not in THEIRS:
        return
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "b", dtype=torch.float32)
    with torch.no_grad():
        got = [float(theirs(torch.tensor([prompt])).logits[0, 0]) for prompt in tiny.PROMPTS[:3]]
    assert got == pytest.approx(want, rel=1e-4, abs=1e-4)


def test_votes() -> None:
    scores = [[1.0, 4.0], [3.0, 0.0]]
    assert vote(scores) == [2.0, 2.0]
    assert vote(scores, "min") == [1.0, 0.0]
    assert vote(scores, "cautious") == [1.0, 0.0]
    with pytest.raises(UsageError, match="at least one"):
        vote([])
    assert Ensemble([], "mean").members == []


def test_calibration_of_a_model_that_means_what_it_says() -> None:
    """Preferences drawn with the probabilities that the margins claim: no calibration error but noise; doubled margins
    are overconfident."""
    draw = np.random.default_rng(0)
    margins = draw.normal(0, 2, 20000)
    wins = draw.random(20000) < 1 / (1 + np.exp(-margins))
    chosen = np.where(wins, margins, -margins)
    honest = judge_scores(chosen.tolist(), [0.0] * len(chosen))
    boastful = judge_scores((3 * chosen).tolist(), [0.0] * len(chosen))
    assert honest.ece < 0.02
    assert boastful.ece > 0.08
    assert boastful.accuracy == honest.accuracy
    assert boastful.log_loss > honest.log_loss
    for one in honest.bins:
        assert abs(one.confidence - one.accuracy) < 4 * math.sqrt(0.25 / one.count) + 0.01


def test_length_bias_shows() -> None:
    """Scores that are the answers' lengths are always right where the chosen one is longer, never where it is not."""
    lengths = [(10, 5), (3, 9), (20, 1), (2, 8)]
    found = judge_scores([float(a) for a, _ in lengths], [float(b) for _, b in lengths], lengths)
    assert (found.accuracy, found.accuracy_longer, found.accuracy_shorter) == (0.5, 1.0, 0.0)


def test_no_opinion_and_no_number() -> None:
    found = judge_scores([1.0, 1.0], [1.0, 1.0])
    assert found.accuracy == 0.5
    assert found.log_loss == pytest.approx(math.log(2))
    with pytest.raises(UsageError, match="not a finite number"):
        judge_scores([math.nan], [0.0])
    with pytest.raises(UsageError, match="no pair"):
        judge_scores([], [])


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    config = {**tiny.FAMILIES["llama"], "architectures": ["LlamaForSequenceClassification"],
              "id2label": {"0": "a", "1": "b", "2": "c"}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="3 labels"):
        tiny.read_any_config(config, "x")
