"""Distillation from recipe to model: what is learned, lists kept on disk, hidden states, tokenizers that do not fit."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import tiny
import tokenmill
from fakes.endpoint import endpoint
from fakes.tiny_llm import VOCABULARY, serving, tiny_app, tiny_folder
from fakes.training import Recorder
from tokenmill.align.on_policy import Rewritten, prompt_of
from tokenmill.align.policy import train as train_with_engine
from tokenmill.align.rollouts import Ask, Written
from tokenmill.config.compose import compose
from tokenmill.core.errors import ConfigError
from tokenmill.data.batch import Batch
from tokenmill.data.loader import Loader
from tokenmill.data.taught import CollateTaught
from tokenmill.nn.context import Packed
from tokenmill.store import Store
from tokenmill.train.distributed import World
from tokenmill.train.evaluate import evaluate
from tokenmill.train.objectives.distill import Distill, matched_layers
from tokenmill.train.plan import plan_run
from tokenmill.train.remote_teacher import RemoteTeacher
from tokenmill.train.run import build_model, teacher_of
from tokenmill.train.teacher import lists, load_teacher

TOKENS = 301
"""Of the tiny tokenizer; the tables have 320 rows."""
WORDS = "the cat dog sat on mat log and hello there what is capital of France".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of three layers, students of other shapes with the same tokenizer, and texts."""
    folder = tmp_path_factory.mktemp("distill")
    tiny_folder(folder / "teacher")
    config = json.loads((folder / "teacher" / "config.json").read_text())
    shapes = {
        "half": {"num_hidden_layers": 2},
        "narrow": {"hidden_size": 32},
        "padded": {"num_hidden_layers": 2, "vocab_size": VOCABULARY + 8},
        "exact": {"vocab_size": TOKENS},
    }
    for name, change in shapes.items():
        tiny.write({**config, **change}, folder / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name / file).write_bytes((folder / "teacher" / file).read_bytes())
    draw = random.Random(0)
    rows = [{"text": " ".join(draw.choices(WORDS, k=draw.randint(3, 12)))} for _ in range(60)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def recipe(place: Path, runs: Path, student: str = "half", **changes: Any) -> dict[str, Any]:
    distill = {"teacher": str(place / "teacher"), "weight": 1.0, **changes.pop("distill", {})}
    return {
        "recipe": "test",
        "objective": "distill",
        "model": str(place / student),
        "data": {"path": str(place / "texts.jsonl"), "eval_share": 0.25},
        "distill": distill,
        "seq_len": 64,
        "micro_batch": 2,
        "accumulate": 2,
        "steps": 12,
        "lr": 1e-2,
        "weight_decay": 0.0,
        "dtype": "float32",
        "eval_every": 0,
        "sample_tokens": 0,
        "trackers": [],
        "out": str(runs),
        **changes,
    }


@pytest.mark.parametrize(
    ("student", "changes"),
    [
        ("half", {}),
        ("half", {"distill": {"top_k": 8, "temperature": 2.0}}),
        ("padded", {"distill": {"divergence": "jsd", "beta": 0.3}}),
        ("narrow", {"distill": {"hidden_weight": 1.0, "divergence": "reverse_kl"}}),
        ("half", {"adapter": {"kind": "lora", "rank": 8}}),
    ],
    ids=["full", "lists", "padded", "hidden", "lora"],
)
def test_a_student_comes_nearer_to_its_teacher(
    place: Path, tmp_path: Path, student: str, changes: dict[str, Any]
) -> None:
    recorder = Recorder()
    result = tokenmill.train(recipe(place, tmp_path / "runs", student, **changes), watchers=[recorder])
    measured = ("divergence", *(["hidden"] if student == "narrow" else []))
    for name in measured:
        values = [step.extra[name] for step in recorder.steps]
        assert sum(values[-3:]) < 0.8 * sum(values[:3]), name
    assert recorder.evals[-1].bits_per_byte is not None
    assert ("teacher" in recorder.kinds()) == ("top_k" in changes.get("distill", {}))
    assert result.model is not None
    if "adapter" not in changes:
        assert tokenmill.load_model(result.model).config["hidden_size"] == (32 if student == "narrow" else 48)


def test_evaluation_is_the_likelihood_of_the_data(place: Path, tmp_path: Path) -> None:
    """The same figure as next_token gives: runs with and without a teacher compare."""
    evaluated = {}
    for objective in ("distill", "next_token"):
        recorder = Recorder()
        changes = {"objective": objective, "steps": 1, "lr": 1e-12}
        given = recipe(place, tmp_path / objective, **changes)
        if objective == "next_token":
            del given["distill"]
        tokenmill.train(given, watchers=[recorder])
        evaluated[objective] = recorder.evals[-1]
    assert evaluated["distill"].loss == pytest.approx(evaluated["next_token"].loss, rel=1e-6)
    assert evaluated["distill"].bits_per_byte == pytest.approx(evaluated["next_token"].bits_per_byte, rel=1e-6)


def test_a_list_of_all_tokens_is_the_whole_distribution(place: Path, tmp_path: Path) -> None:
    plan = plan_run(compose(recipe(place, tmp_path, distill={"top_k": TOKENS, "temperature": 1.5})))
    known, network = lists(plan, World()), build_model(plan).decoder
    assert known is not None
    dataset = plan.splits.train
    samples = [dataset[i] for i in (5, 0, 17)]
    listed = Distill(plan.recipe.distill, None, TOKENS)(
        network, CollateTaught(known.train, dataset.lengths)(samples, 0)
    )
    asked = Distill(plan.recipe.distill, load_teacher(plan), TOKENS)(network, Batch.of(samples))
    torch.testing.assert_close(listed.sum, asked.sum, rtol=1e-4, atol=1e-4)
    assert listed.metrics["nll"][0] == pytest.approx(asked.metrics["nll"][0])


def test_lists_are_computed_once(place: Path, tmp_path: Path, own_home: Path) -> None:
    """Named by data, teacher, temperature and length; a broken file is computed anew."""

    def told(**distill: Any) -> str:
        found = lists(plan_run(compose(recipe(place, tmp_path, distill={"top_k": 4, **distill}))), World())
        assert found is not None
        return found.told

    assert "tokens computed" in told()
    assert "from the cache" in told(weight=0.5, divergence="jsd")
    assert "computed" in told(temperature=2.0)
    assert "computed" in told(top_k=5)
    assert "computed" in told(teacher=str(place / "half"))
    for file in (own_home / "cache" / "teacher").iterdir():
        file.write_bytes(file.read_bytes()[:-3])
    assert "computed" in told()


def test_another_tokenizer_is_refused_by_its_strings(place: Path, tmp_path: Path) -> None:
    """Of the same size, with two tokens exchanged; and one that has the same tokens and lacks a merge."""
    for name, exchange in (("swapped", True), ("merged", False)):
        folder = tmp_path / name
        folder.mkdir()
        for file in (place / "teacher").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        spec = json.loads((folder / "tokenizer.json").read_text())
        vocabulary = spec["model"]["vocab"]
        if exchange:
            vocabulary["the"], vocabulary["Ġthe"] = vocabulary["Ġthe"], vocabulary["the"]
        else:
            spec["model"]["merges"].remove(["t", "he"])
        (folder / "tokenizer.json").write_text(json.dumps(spec))
        with pytest.raises(ConfigError, match="has another tokenizer than") as refused:
            tokenmill.train(recipe(place, tmp_path / "runs", distill={"teacher": str(folder)}))
        assert ("ids stand for different tokens" if exchange else "is cut into different ones") in str(refused.value)


def test_padding_of_a_table_is_no_token(place: Path, tmp_path: Path) -> None:
    """What a padded teacher gives its padding is left out, and the student's padding gets nothing of the divergence."""
    plan = plan_run(compose(recipe(place, tmp_path, "padded", distill={"teacher": str(place / "padded")})))
    teacher, network = load_teacher(plan), build_model(plan).decoder
    assert teacher.width == TOKENS
    batch = Batch.of([plan.splits.train[0]])
    with torch.no_grad():
        teacher.network.head.weight[TOKENS:] += 100.0
    loss = Distill(plan.recipe.distill, teacher, TOKENS)(network, batch)
    assert loss.metrics["divergence"][0] == pytest.approx(0.0, abs=1e-4)
    loss.sum.backward()
    assert not network.head.weight.grad[TOKENS:].any()


def test_layers_go_with_those_at_the_same_depth() -> None:
    assert matched_layers(2, 4) == ([0, 1], [1, 3])
    assert matched_layers(3, 3) == ([0, 1, 2], [0, 1, 2])
    assert matched_layers(4, 2)[1][-1] == 1


def test_hidden_states_of_an_equal_student_are_no_distance(place: Path, tmp_path: Path) -> None:
    plan = plan_run(compose(recipe(place, tmp_path, "teacher", distill={"hidden_weight": 1.0})))
    model = build_model(plan)
    loss = Distill(plan.recipe.distill, teacher_of(plan, model), TOKENS)(
        model.decoder, Batch.of([plan.splits.train[0]])
    )
    assert loss.metrics["hidden"] == pytest.approx(0.0, abs=1e-5)
    assert float(loss.sum.detach()) == pytest.approx(0.0, abs=1e-3)


def test_resuming_repeats_a_run_with_its_projections(place: Path, tmp_path: Path) -> None:
    """Bit for bit, as every objective: the matrices between widths are in the checkpoint."""
    how: dict[str, Any] = {"distill": {"hidden_weight": 1.0}, "save_every": 3, "steps": 6}
    whole = tokenmill.train(recipe(place, tmp_path / "whole", "narrow", **how), watchers=[])
    half = tokenmill.train(recipe(place, tmp_path / "half", "narrow", **how), watchers=[])
    for step in half.folder.glob("checkpoints/step-6*"):
        for file in step.iterdir():
            file.unlink()
        step.rmdir()
    (half.folder / "checkpoints" / "latest").unlink(missing_ok=True)
    again = tokenmill.train(resume=half.folder, watchers=[])
    for one, other in zip(*(sorted((r.model or tmp_path).glob("*.safetensors")) for r in (whole, again)), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_a_new_student_takes_its_teachers_tokenizer(place: Path, tmp_path: Path) -> None:
    given = recipe(place, tmp_path, shape={"hidden_size": 32, "num_heads": 2, "num_layers": 1})
    del given["model"]
    plan = plan_run(compose(given))
    assert ("tokenizer", str(place / "teacher"), "the teacher's") in plan.derivations
    with torch.no_grad():
        network = build_model(plan).decoder
        assert network(torch.tensor([1, 2]), Packed([2])).shape[0] == 2
    data = [Batch.of([plan.splits.train[i] for i in range(4)])]
    judged = evaluate(network, Distill(plan.recipe.distill, None, TOKENS).evaluated(), data, device=torch.device("cpu"))
    assert np.isfinite(judged.loss)


# --- a teacher behind a server


@pytest.fixture(scope="module")
def served(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The model "exact", whose table has no padding, as "tiny"."""
    root = tmp_path_factory.mktemp("served")
    store = Store(root / "models")
    store.create("tiny", f"FROM {place / 'exact'}\n", root)
    with serving(tiny_app(root, store=store)) as url:
        yield f"{url}/v1"


def test_a_server_says_what_the_model_says(place: Path, tmp_path: Path, served: str) -> None:
    """The lists of a teacher at an address are those of the same teacher here."""
    found = {}
    for name, where in (("here", {"teacher": str(place / "exact")}), ("there", {"teacher": "tiny", "url": served})):
        plan = plan_run(compose(recipe(place, tmp_path / name, distill={"top_k": 8, **where})))
        found[name] = lists(plan, World())
    here, there = found["here"], found["there"]
    assert here is not None
    assert there is not None
    assert here.train.shape == there.train.shape
    np.testing.assert_allclose(here.train["logprob"], there.train["logprob"], atol=2e-5)
    clear = here.train["logprob"][:, :-1] - here.train["logprob"][:, 1:] > 1e-4  # ties may come in either order
    clear = clear & np.c_[np.ones(len(clear), bool), clear[:, :-1]]
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(here.train["id"][:, :-1][clear], there.train["id"][:, :-1][clear])


def test_a_server_judges_what_the_student_wrote(place: Path, tmp_path: Path, served: str) -> None:
    distill = {"teacher": "tiny", "url": served, "top_k": 20, "lmbda": 1.0}
    plan = plan_run(compose(recipe(place, tmp_path, distill=distill)))
    assert lists(plan, World()) is None, "none of the data is learned from"
    batch = replace(Batch.of([plan.splits.train[i] for i in range(3)]), written=True)
    taught = RemoteTeacher(plan.recipe.distill, plan.tokenizer).taught(batch)
    lesson = load_teacher(plan_run(compose(recipe(place, tmp_path, distill={"teacher": str(place / "exact")}))))
    wanted_TK = torch.log_softmax(lesson.lesson(batch)(torch.arange(len(batch.tokens_T))).values, -1)
    torch.testing.assert_close(taught.logprobs_TK, wanted_TK.gather(-1, taught.ids_TK), atol=2e-5, rtol=0)
    assert taught.written
    loss = Distill(plan.recipe.distill, None, TOKENS)(build_model(plan).decoder, taught)
    assert loss.metrics["written_divergence"][0] > 0


@pytest.mark.parametrize("fault", ["another string", "another cut", "no ids", "no scores"])
def test_a_server_with_another_tokenizer_is_refused(place: Path, tmp_path: Path, fault: str) -> None:
    from tokenmill.models import load_tokenizer

    tokenizer = load_tokenizer(place / "teacher")

    def script(body: dict[str, Any]) -> tuple[int, dict[str, str], str]:
        if fault == "no scores":
            return 400, {}, "prompts are not scored here"
        given = body["prompt"]
        ids = tokenizer.encode(given) if isinstance(given, str) else given
        names = [tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids]
        if fault == "another string":
            names = [name.replace("cat", "cow") for name in names]
        if body.get("return_tokens_as_token_ids") and fault != "no ids":
            names = [f"token_id:{i}" for i in ids]
        if fault == "another cut" and isinstance(given, str):
            names.insert(0, "token_id:3")
        tops: list[Any] = [None, *({name: -1.0} for name in names)]
        scores = {"tokens": [*names, "token_id:0"], "top_logprobs": tops}
        return 200, {}, json.dumps({"choices": [{"text": "", "logprobs": scores}]})

    why = {
        "another string": "stand for different tokens: .*cow.* and .*cat",
        "another cut": "is cut into different ones",
        "no ids": "not by its id",
        "no scores": "will not score a prompt: prompts are not scored here",
    }
    with endpoint(script) as server:
        plan = plan_run(compose(recipe(place, tmp_path, distill={"teacher": "t", "url": server.url, "top_k": 4})))
        with pytest.raises(ConfigError, match=why[fault]):
            lists(plan, World())


# --- on-policy


class Echo:
    """Writes the seed it was given, as two tokens and the end."""

    def write(self, asked: Sequence[Ask]) -> list[Written]:
        return [Written([ask.seed % 97 + 10, ask.seed % 89 + 10, 2], [0.0] * 3, True) for ask in asked]


def rewritten(place: Path, runs: Path, **distill: Any) -> Rewritten:
    plan = plan_run(compose(recipe(place, runs, distill={"completion_tokens": 3, **distill})))
    loader = Loader(plan.splits.train, seq_len=64, micro_batch=2, seed=0)
    return Rewritten(loader, plan, World(), cast(Any, Echo()), 2 * (64 + 3), None)


def test_a_share_of_the_batches_is_the_students_own(place: Path, tmp_path: Path) -> None:
    """Prompts stay, answers are what was written, and a source that goes on from a state gives the same."""
    source = rewritten(place, tmp_path, lmbda=0.5)
    batches = []
    for batch in itertools.islice(source, 12):
        batches.append(batch)
        if len(batches) == 5:
            state = source.state()
    assert 2 <= sum(batch.written for batch in batches) <= 10
    own = next(batch for batch in batches if batch.written)
    documents = source.source.dataset
    at = 0
    for index, length in zip(own.indices, own.lengths, strict=True):
        half = len(documents[index]) // 2
        assert length == half + 2
        assert own.tokens_T[at : at + half].tolist() == documents[index].tokens[:half].tolist()
        assert own.labels_T[at : at + length].tolist()[: half - 1] == [-100] * (half - 1)
        assert own.labels_T[at + half - 1 : at + length - 1].tolist() == own.tokens_T[at + half :][:2].tolist()
        assert int(own.labels_T[at + length - 1]) == 2
        at += length
    again = rewritten(place, tmp_path, lmbda=0.5)
    again.load(state)
    for one, other in zip(batches[5:], again, strict=False):
        assert one.tokens_T.tolist() == other.tokens_T.tolist()
    assert not any(batch.written for batch in itertools.islice(rewritten(place, tmp_path, completion_tokens=128), 4))


def test_what_the_student_wrote_is_learned_by_the_divergence_alone(place: Path, tmp_path: Path) -> None:
    """Its own labels, random ones here, move nothing, whatever share the data's have."""
    plan = plan_run(compose(recipe(place, tmp_path, distill={"weight": 0.3})))
    network, objective = build_model(plan).decoder, Distill(plan.recipe.distill, load_teacher(plan), TOKENS)
    batch = Batch.of([plan.splits.train[i] for i in range(3)])
    own = replace(batch, written=True)
    other = replace(own, labels_T=torch.where(own.labels_T < 0, own.labels_T, (own.labels_T + 7) % TOKENS))
    loss, same, data = (objective(network, one) for one in (own, other, batch))
    sums = [float(one.sum.detach()) for one in (loss, same, data)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-6)
    assert sums[0] == pytest.approx(loss.metrics["written_divergence"][0], rel=1e-5)
    nll, divergence = data.metrics["nll"][0], data.metrics["divergence"][0]
    assert sums[2] == pytest.approx(0.7 * nll + 0.3 * divergence, rel=1e-5)


def test_a_student_learns_from_what_it_writes(place: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    distill = {"lmbda": 1.0, "completion_tokens": 8, "divergence": "reverse_kl"}
    train_with_engine(recipe(place, tmp_path / "runs", distill=distill, steps=2), watchers=[recorder])
    assert all(step.extra["written_divergence"] > 0 and "divergence" not in step.extra for step in recorder.steps)


def test_what_stays_of_a_document_is_its_prompt() -> None:
    no = -100
    tokens = np.arange(8)
    turns = np.array([no, 2, 3, no, no, 6, 7, no])
    assert prompt_of(tokens, turns) == [0, 1, 2, 3, 4, 5]
    assert prompt_of(tokens, np.arange(1, 9)) == [0, 1, 2, 3]
    assert prompt_of(tokens, np.full(8, no)) == []


@pytest.mark.parametrize(
    ("distill", "why"),
    [
        ({"url": "http://127.0.0.1:1/v1"}, "say how many"),
        ({"url": "http://127.0.0.1:1/v1", "top_k": 4, "temperature": 2.0}, "temperature must be 1"),
        ({"lmbda": 0.5, "top_k": 4}, "lmbda needs it"),
        ({"lmbda": 0.5, "weight": 0.0, "hidden_weight": 1.0}, "distill.weight is 0"),
        ({"completion_tokens": 5}, "has no effect here"),
        ({"key_variable": "KEY"}, "has no effect here"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(place: Path, tmp_path: Path, distill: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        compose(recipe(place, tmp_path, distill=distill))
