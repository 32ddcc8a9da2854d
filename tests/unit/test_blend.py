"""Models merged tensor by tensor: the papers' formulas, files of every kind, what does not go together."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import tokenmill
from fakes.tiny_llm import tiny_folder
from tiny import FAMILIES, weights, write
from tokenmill.cli.app import main
from tokenmill.core.errors import UsageError
from tokenmill.formats.hf_folder import write_hf_folder
from tokenmill.models.blend import METHODS, Member, Recipe, blend, slerp

A, B, BASE = (torch.from_numpy(np.random.RandomState(i).standard_normal((6, 10)).astype(np.float32)) for i in range(3))


def test_linear_and_task_arithmetic_by_hand() -> None:
    torch.testing.assert_close(blend("t", [A, B], Recipe("linear", (3.0, 1.0))), 0.75 * A + 0.25 * B)
    found = blend("t", [A, B], Recipe("task-arithmetic", (0.5, 0.25), scale=2.0), BASE)
    torch.testing.assert_close(found, BASE + 2 * (0.5 * (A - BASE) + 0.25 * (B - BASE)))


def test_slerp_goes_along_the_arc() -> None:
    """By Shoemake's formula; on the unit sphere it stays there, and halfway is halfway."""
    one, other = A / A.norm(), B / B.norm()
    for share in (0.0, 0.3, 1.0):
        assert float(slerp(one, other, share).norm()) == pytest.approx(1.0, abs=1e-6)
    angle = math.acos(float((one * other).sum()))
    at = slerp(one, other, 0.3)
    assert math.acos(float((one * at).sum())) == pytest.approx(0.3 * angle, abs=1e-5)
    torch.testing.assert_close(slerp(A, B, 0.5), (A + B) * math.sin(angle / 2) / math.sin(angle), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(slerp(A, 2 * A, 0.25), 1.25 * A)  # no angle: along the line
    torch.testing.assert_close(slerp(torch.zeros(3), torch.ones(3), 0.5), torch.full((3,), 0.5))


def test_ties_by_a_loop_over_the_values() -> None:
    """Yadav et al.'s three steps, value by value."""
    w = (1.0, 0.5)
    deltas = []
    for tensor in (A, B):
        delta = (tensor - BASE).numpy().ravel().copy()
        smallest = np.argsort(-np.abs(delta))[round(0.4 * delta.size) :]
        delta[smallest] = 0
        deltas.append(delta)
    want = BASE.numpy().ravel().copy()
    for i in range(want.size):
        parts = [weight * delta[i] for weight, delta in zip(w, deltas, strict=True)]
        sign = np.sign(sum(parts))
        agree = [j for j in (0, 1) if parts[j] and np.sign(parts[j]) == sign]
        if agree:
            want[i] += 0.7 * sum(parts[j] for j in agree) / sum(w[j] for j in agree)
    found = blend("t", [A, B], Recipe("ties", w, density=0.4, scale=0.7), BASE)
    np.testing.assert_allclose(found.numpy().ravel(), want, rtol=1e-5, atol=1e-6)


def test_dare_keeps_the_sum_on_average_and_is_the_same_again() -> None:
    big, base = torch.ones(300, 300), torch.zeros(300, 300)
    recipe = Recipe("dare", density=0.2, seed=3)
    found = blend("t", [big], recipe, base)
    assert set(found.unique().tolist()) == {0.0, 5.0}
    assert float(found.mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(found, blend("t", [big], recipe, base))
    assert not torch.equal(found, blend("u", [big], recipe, base))
    assert not torch.equal(found, blend("t", [big], Recipe("dare", density=0.2, seed=4), base))
    torch.testing.assert_close(blend("t", [A], Recipe("dare-ties", density=1.0), BASE), A)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_merged_with_itself_is_itself(method) -> None:
    based = method not in ("linear", "slerp")
    weighting = (0.5, 0.5) if method in ("dare", "task-arithmetic") else ()
    found = blend("t", [A, A], Recipe(method, weighting, density=1.0), BASE if based else None)
    torch.testing.assert_close(found, A)


@pytest.mark.parametrize(
    ("recipe", "models", "base", "why"),
    [
        (Recipe("tie"), 2, True, "did you mean 'ties'?"),  # type: ignore[arg-type]
        (Recipe("linear", (1.0,)), 2, False, "1 weights for 2 models"),
        (Recipe("slerp"), 3, False, "3 were given"),
        (Recipe("ties"), 2, False, "give --base"),
        (Recipe("linear"), 2, True, "has no base"),
        (Recipe("dare", density=0.0), 2, True, "density"),
        (Recipe("linear", (1.0, -1.0)), 2, False, "no mean"),
    ],
)
def test_recipes_that_mean_nothing(recipe, models, base, why) -> None:
    with pytest.raises(UsageError, match=why.replace("?", r"\?")):
        recipe.check(models, base)


@pytest.mark.parametrize("family", ["mixtral", "gpt2", "phi3"])
def test_every_tensor_comes_through(family, tmp_path) -> None:
    """Stacked experts, transposed and fused matrices."""
    member = Member("m", write(FAMILIES[family], tmp_path))
    from tokenmill.models.weights import slots

    want = dict(weights(FAMILIES[family]))
    found = {slot.theirs: member.load(slot) for slot in slots(member.network, member.family.weights)}
    assert found.keys() == want.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, want[name])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("blend")
    tiny_folder(folder / "a")
    config = json.loads((folder / "a" / "config.json").read_text())
    for name, change in (("b", {}), ("wide", {"intermediate_size": 96}), ("rope", {"rope_theta": 5e5})):
        tensors = ((n, t * 0.5 + 0.1) for n, t in weights({**config, **change}))
        write_hf_folder(folder / name, {**config, **change}, tensors)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name / file).write_bytes((folder / "a" / file).read_bytes())
    (folder / "words").mkdir()
    for file in (folder / "b").iterdir():
        (folder / "words" / file.name).write_bytes(file.read_bytes())
    spec = json.loads((folder / "words" / "tokenizer.json").read_text())
    vocabulary = spec["model"]["vocab"]
    vocabulary["the"], vocabulary["Ġthe"] = vocabulary["Ġthe"], vocabulary["the"]
    (folder / "words" / "tokenizer.json").write_text(json.dumps(spec))
    return folder


def test_the_command(place, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))
    a, b = str(place / "a"), str(place / "b")
    words = ["merge", a, b, "--method", "linear", "--weights", "1,3", "--out", str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "float32"
    merged, one, other = (tokenmill.load_model(path).decoder for path in (str(tmp_path / "out"), a, b))
    q = "layers.1.attn.q"
    want = 0.25 * one.get_submodule(q).weight + 0.75 * other.get_submodule(q).weight
    torch.testing.assert_close(merged.get_submodule(q).weight, want)
    assert tokenmill.load_tokenizer(tmp_path / "out").chat_template
    words = ["merge", a, b, "--method", "ties", "--base", a, "--dtype", "bfloat16", "--out", str(tmp_path / "ties")]
    assert main(words) == 0
    assert json.loads((tmp_path / "ties" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("other", "words", "why"),
    [
        ("wide", [], "differ in shape: model.layers.0.mlp.gate_proj.weight is [80, 48] and [96, 48]"),
        ("rope", [], "compute in different ways"),
        ("words", [], "ids stand for different tokens"),
        ("b", ["--density", "0.3"], "--density means nothing to --method linear"),
        ("b", ["--weights", "a,b"], "give numbers"),
    ],
)
def test_what_does_not_go_together(place, tmp_path, capsys, monkeypatch, other, words, why) -> None:
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))
    given = ["merge", str(place / "a"), str(place / other), "--method", "linear", *words, "--out", str(tmp_path / "o")]
    assert main(given) != 0
    assert why in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
