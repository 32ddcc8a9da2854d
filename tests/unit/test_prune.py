"""Pruning: which weights go, what the others do about it, layers and widths taken out, and folders that are whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tokenmill
from fakes.tiny_llm import tiny_folder
from tiny import FAMILIES, PROMPTS, packed, write
from tokenmill.cli.app import main
from tokenmill.core.checksums import check_sums
from tokenmill.core.errors import ConfigError, UsageError
from tokenmill.formats.aside import built_aside
from tokenmill.models.load import Model
from tokenmill.nn.context import Packed
from tokenmill.prune.depth import keep_layers, layers_to_keep
from tokenmill.prune.run import prune_weights
from tokenmill.prune.weights import METHODS, Sparsity, prune_matrix
from tokenmill.prune.width import narrow
from tokenmill.quant.statistics import InputStatistics

DOCUMENTS = [torch.tensor(prompt) for prompt in PROMPTS * 4]
TOKENS, CONTEXT = packed(PROMPTS), Packed([len(prompt) for prompt in PROMPTS])


def inputs(columns: int = 32, tokens: int = 256) -> InputStatistics:
    """Of correlated inputs whose columns have very different sizes."""
    draw = torch.Generator().manual_seed(1)
    order = torch.randperm(columns, generator=draw)  # SparseGPT chooses within blocks of columns
    mixing = torch.randn(columns, columns, generator=draw) * 0.3 + torch.eye(columns)
    x_TI = torch.randn(tokens, columns, generator=draw) @ mixing * torch.logspace(-1, 1, columns)[order]
    heard = InputStatistics.empty(columns, torch.device("cpu"))
    heard.add(x_TI)
    return heard


def matrix(rows: int = 12, columns: int = 32) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", ["0.5", "0.75", "2:4", "1:8", "80:160"])
def test_as_many_go_as_were_asked_for(method, text) -> None:
    sparsity = Sparsity.of(text)
    columns = 160 if text == "80:160" else 32  # more in a group than SparseGPT takes at once
    gone_OI = prune_matrix(matrix(columns=columns), method, sparsity, inputs(columns)).weight_OI == 0
    assert gone_OI.float().mean() == sparsity.share
    if sparsity.pattern is not None:
        kept, group = sparsity.pattern
        assert ((~gone_OI).unflatten(1, (-1, group)).sum(-1) == kept).all()
    if method == "wanda":
        assert (gone_OI.float().mean(1) == sparsity.share).all()


def test_magnitude_and_wanda_by_hand() -> None:
    weight_OI, heard = torch.tensor([[1.0, -2.0, 3.0, -4.0], [0.1, 0.2, 0.3, 0.4]]), inputs(4)
    assert prune_matrix(weight_OI, "magnitude", Sparsity(0.5), None).weight_OI[1].count_nonzero() == 0
    scores_OI = weight_OI.abs() * heard.moments_II.diagonal().sqrt()
    want_OI = weight_OI.where(scores_OI >= scores_OI.median(1, keepdim=True).values.nextafter(torch.tensor(9e9)), 0.0)
    torch.testing.assert_close(prune_matrix(weight_OI, "wanda", Sparsity(0.5), heard).weight_OI, want_OI)


def test_what_sparsegpt_leaves_makes_up_for_what_went() -> None:
    """Of two columns, the one that stays behind gets the least-squares solution."""
    heard = inputs(2)
    hessian_II = heard.hessian()
    weight_OI = torch.tensor([[0.01, 3.0]])
    found = prune_matrix(weight_OI, "sparsegpt", Sparsity.of("1:2"), heard, damping=1e-7).weight_OI
    want = 3.0 + 0.01 * hessian_II[0, 1] / hessian_II[1, 1]
    torch.testing.assert_close(found, torch.tensor([[0.0, want]]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("text", ["0.5", "2:4"])
def test_the_order_of_the_papers(text: str) -> None:
    """Outputs change least by SparseGPT, then Wanda, then magnitude."""
    heard, weight_OI = inputs(192, 2048), matrix(48, 192)
    errors = []
    for method in ("sparsegpt", "wanda", "magnitude"):
        change_OI = prune_matrix(weight_OI, method, Sparsity.of(text), heard).weight_OI - weight_OI  # type: ignore[arg-type]
        errors.append(float(((change_OI @ heard.hessian()) * change_OI).sum()))
    assert errors[0] < 0.9 * errors[1]
    assert errors[1] < 0.8 * errors[2]


def test_a_hessian_that_cannot_be_inverted_is_said() -> None:
    heard = inputs()
    heard.moments_II[3, 4] = float("nan")
    pruned = prune_matrix(matrix(), "sparsegpt", Sparsity(0.5), heard)
    assert heard.error(matrix(), pruned.weight_OI - matrix()) is None  # no number that JSON does not have
    assert "cannot be inverted" in pruned.problem
    assert (pruned.weight_OI == 0).float().mean() == 0.5


@pytest.mark.parametrize("text", ["0", "1.0", "half", "4:2", "0:4", "2:x"])
def test_sparsities_that_mean_nothing(text: str) -> None:
    with pytest.raises(UsageError, match="neither a share"):
        Sparsity.of(text)


@pytest.mark.parametrize(("family", "method"), [("llama", "wanda"), ("mixtral", "sparsegpt"), ("gpt2", "magnitude")])
def test_linear_layers_are_pruned_and_nothing_else(family, method, tmp_path) -> None:
    model = tokenmill.load_model(write(FAMILIES[family], tmp_path))
    before = {name: parameter.clone() for name, parameter in model.network.named_parameters()}
    records = prune_weights(model, method, Sparsity(0.5), DOCUMENTS if method != "magnitude" else [])
    for name, parameter in model.network.named_parameters():
        matrix_of_a_layer = name.startswith("layers.") and parameter.ndim > 1 and "router" not in name
        if not matrix_of_a_layer:
            assert torch.equal(parameter, before[name]), name
        else:
            assert (parameter == 0).float().mean() == pytest.approx(0.5, abs=0.02), name
    assert all((record.error is None) == (method == "magnitude") for record in records)
    hidden_TC = model.decoder.hidden(TOKENS, CONTEXT)
    assert hidden_TC.isfinite().all()


def test_calibration_is_needed_and_has_to_be_enough(tmp_path) -> None:
    model = tokenmill.load_model(write(FAMILIES["llama"], tmp_path))
    for documents, why in (([], "empty"), ([torch.tensor([1, 2, 3])], "too short")):
        with pytest.raises(ConfigError, match=why):
            prune_weights(model, "wanda", Sparsity(0.5), documents)


def idle_layer(model: Model, layer: int) -> None:
    """Make a layer pass on what it gets."""
    block = model.decoder.layers[layer]
    for linear in (block.attn.out, block.mlp.down):
        for parameter in linear.parameters():
            parameter.data.zero_()


@pytest.mark.parametrize("rule", ["influence", "angular"])
def test_a_layer_that_does_nothing_goes_first(rule, tmp_path) -> None:
    model = tokenmill.load_model(write(FAMILIES["llama-tied"], tmp_path))
    idle_layer(model, 1)
    kept, scores = layers_to_keep(model, 2, rule, DOCUMENTS)
    assert kept == [0, 2]
    assert min(scores) == pytest.approx(0.0, abs=5e-3)
    smaller = keep_layers(model, kept)
    assert smaller.config["num_hidden_layers"] == 2
    torch.testing.assert_close(smaller.decoder(TOKENS, CONTEXT), model.decoder(TOKENS, CONTEXT))
    smaller.save(tmp_path / "out")
    again = tokenmill.load_model(tmp_path / "out")
    torch.testing.assert_close(again.decoder(TOKENS, CONTEXT), model.decoder(TOKENS, CONTEXT))


def test_even_keeps_first_and_last() -> None:
    class Shape:
        class decoder:
            class config:
                num_layers = 30

    for count in range(2, 30):
        kept, _ = layers_to_keep(Shape, count, "even")  # type: ignore[arg-type]
        assert (len(kept), kept[0], kept[-1]) == (count, 0, 29)


def test_layers_whose_number_matters_are_refused(tmp_path) -> None:
    model = tokenmill.load_model(write(FAMILIES["gemma2"], tmp_path))  # every other layer slides
    with pytest.raises(ConfigError, match="differ by their number"):
        keep_layers(model, [1, 2])


def test_what_says_nothing_is_what_goes(tmp_path) -> None:
    """Neurons and a group of heads whose outputs are multiplied with zero: the model without them is the same."""
    model = tokenmill.load_model(write(FAMILIES["llama"], tmp_path))
    for block in model.decoder.layers:
        block.mlp.down.weight.data[:, 3:80:5] = 0
        block.attn.out.weight.data[:, :24] = 0  # the first of two groups of two heads of 12
    left = 80 - len(range(3, 80, 5))
    smaller = narrow(model, DOCUMENTS, mlp_size=left, kv_heads=1)
    torch.testing.assert_close(smaller.decoder(TOKENS, CONTEXT), model.decoder(TOKENS, CONTEXT))
    assert smaller.config | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12} == smaller.config
    smaller.save(tmp_path / "out")
    again = tokenmill.load_model(tmp_path / "out")
    torch.testing.assert_close(again.decoder(TOKENS, CONTEXT), model.decoder(TOKENS, CONTEXT))
    with pytest.raises(UsageError, match="from 1 to 79"):
        narrow(model, DOCUMENTS, mlp_size=80)


# --- the command, and folders


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))
    tiny_folder(tmp_path / "model")
    rows = [{"text": f"the cat sat on the mat and the dog sat on log {i} of France " * 3} for i in range(40)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_the_command_writes_a_model_and_says_what_it_lost(place, capsys, monkeypatch) -> None:
    tokenmill.load_model(place / "model", dtype="bfloat16").save(place / "model")
    words = ["prune", str(place / "model"), "--data", str(place / "texts.jsonl"), "--seq-len", "64", "--json"]
    first = [*words, "--method", "wanda", "--sparsity", "2:4", "--out", str(place / "sparse")]
    monkeypatch.setattr(sys, "argv", ["tokenmill", *first])
    assert main(first) == 0
    check_sums(Path(first[-1]))
    assert "### pruning report" in (Path(first[-1]) / "README.md").read_text()
    document = json.loads(capsys.readouterr().out)
    assert document["zeros"] == 0.5
    assert document["measured"]["kl"] > 0
    page = (place / "sparse" / "pruning_report.html").read_text()
    assert "layers.2.mlp.down" in page
    assert "--sparsity 2:4" in page, "the report has the whole command"
    assert json.loads((place / "sparse" / "config.json").read_text())["dtype"] == "bfloat16", "as the model had it"
    weight = tokenmill.load_model(place / "sparse").decoder.layers[0].attn.q.weight
    assert (weight.unflatten(1, (-1, 4)) == 0).sum(-1).unique().tolist() == [2]
    assert main([*words, "--method", "depth", "--layers", "2", "--out", str(place / "half")]) == 0
    assert json.loads(capsys.readouterr().out)["kept_layers"] is not None
    assert tokenmill.load_tokenizer(place / "half").chat_template


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--method", "wandas"], "did you mean 'wanda'?"),
        (["--method", "wanda"], "give it texts with --data"),
        (["--method", "magnitude", "--layers", "3"], "--layers means nothing to --method magnitude"),
        (["--method", "depth"], "say how many layers stay"),
        (["--method", "depth", "--rule", "even", "--layers", "3"], "3 layers cannot be kept of 3"),
        (["--method", "magnitude", "--sparsity", "3:2"], "neither a share"),
    ],
)
def test_mistakes_are_said(place, capsys, words, why) -> None:
    assert main(["prune", str(place / "model"), *words, "--out", str(place / "out")]) in (1, 2)
    assert why in capsys.readouterr().err
    assert not (place / "out").exists()


def test_a_folder_is_whole_or_not_there(tmp_path) -> None:
    """A process that is killed while it writes leaves nothing under the name, and the next one tidies up."""
    child = os.fork()
    if child == 0:
        with built_aside(tmp_path / "out") as folder:
            (folder / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.glob(".out.writing-*"))) == 1
    with built_aside(tmp_path / "o[u]t"):  # a name is no pattern: what is another one's stays
        pass
    assert len(list(tmp_path.glob(".out.writing-*"))) == 1
    with built_aside(tmp_path / "out") as folder:
        (folder / "whole").write_text("x")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["whole"]
    assert not list(tmp_path.glob(".out.writing-*"))
    assert (tmp_path / "out").stat().st_mode == tmp_path.joinpath("o[u]t").stat().st_mode
    with pytest.raises(UsageError, match="new or empty"), built_aside(tmp_path / "out"):
        pass
    with pytest.raises(ZeroDivisionError), built_aside(tmp_path / "other"):
        raise ZeroDivisionError
    assert not (tmp_path / "other").exists()
    assert not list(tmp_path.glob(".*"))


def test_two_that_write_one_folder_do_not_disturb_each_other(tmp_path) -> None:
    """The second is refused before it has worked for nothing; the first one's folder is whole."""
    with built_aside(tmp_path / "out") as folder:
        (folder / "first").write_text("x")
        with pytest.raises(UsageError, match="another command is writing there"), built_aside(tmp_path / "out"):
            pass
        code = "import sys; from pathlib import Path; from tokenmill.formats.aside import built_aside as b\n"
        code += "with b(Path(sys.argv[1])): pass"
        command = [sys.executable, "-c", code, tmp_path / "out"]
        other = subprocess.run(command, check=False, capture_output=True, text=True)
        assert "another command is writing there" in other.stderr
        with built_aside(tmp_path / "other"):
            pass
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["first"]
    assert not list(tmp_path.glob(".*"))
