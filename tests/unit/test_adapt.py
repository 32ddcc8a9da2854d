"""Adapters without PEFT: side by side and off, quantised bases, bottlenecks, merging, refusals, the command."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from fakes.tiny_llm import tiny_folder
from tokenmill import LLM, SamplingParams
from tokenmill.adapt import (
    adapt,
    learning_rates,
    load_adapter,
    merge_adapter,
    read_note,
    remove_adapter,
    save_adapter,
    switch_of,
    virtual_ids,
)
from tokenmill.cli.app import main
from tokenmill.config.parts import AdapterConfig
from tokenmill.core.errors import ConfigError, FormatError, UsageError
from tokenmill.engine.generate import generate
from tokenmill.engine.request import Request
from tokenmill.llm import put_adapters
from tokenmill.models import Model, load_model
from tokenmill.models.resize import grow_vocabulary
from tokenmill.nn.context import Packed
from tokenmill.quant.nf4 import quantize_linears
from tokenmill.store import Store

PROMPTS = tiny.PROMPTS[:3]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny.write(tiny.FAMILIES["llama"], tmp_path / "base")


def logits(model: Model) -> torch.Tensor:
    with torch.inference_mode():
        return model.decoder(tiny.packed(PROMPTS), Packed([len(p) for p in PROMPTS]))


def stir(model: Model, seed: int = 7) -> None:
    """Every trainable parameter away from where it began."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.network.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.2


def trained(base: Path, folder: Path, config: AdapterConfig, *, seed: int = 7, packed: bool = False) -> torch.Tensor:
    """An adapter folder as if trained; returns the logits of base and adapter."""
    model = load_model(base, dtype="float32")
    if packed:
        quantize_linears(model.network)
    adapt(model, config, seed=seed)
    stir(model, seed)
    save_adapter(model, folder)
    return logits(model)


def test_side_by_side_switched_and_off(base: Path, tmp_path: Path) -> None:
    one = trained(base, tmp_path / "one", AdapterConfig(rank=2), seed=1)
    two = trained(base, tmp_path / "two", AdapterConfig(kind="prefix", virtual_tokens=3), seed=2)
    three = trained(base, tmp_path / "three", AdapterConfig(kind="bottleneck", bottleneck_size=4), seed=3)
    model = load_model(base, dtype="float32")
    plain = logits(model)
    for name in ("one", "two", "three"):
        load_adapter(model, tmp_path / name, name)
    adapters = switch_of(model)
    assert torch.equal(logits(model), three)  # the newest is on
    with adapters.use("one"):
        assert torch.equal(logits(model), one)
        with adapters.off():
            assert torch.equal(logits(model), plain)
        assert torch.equal(logits(model), one)
    adapters.set_default("two")
    assert torch.equal(logits(model), two)
    with adapters.use("one", "three"):
        both = logits(model)
    assert (both - one).abs().max() > 0.01 < (both - three).abs().max()
    for name in ("one", "two", "three"):
        remove_adapter(model, name)
    assert torch.equal(logits(model), plain)
    assert not any("adapters" in name for name, _ in model.network.named_modules())
    with pytest.raises(UsageError, match=r"no adapter 'on'.*it has: none"), adapters.use("on"):
        pass


def test_two_models_do_not_switch_each_other(base: Path, tmp_path: Path) -> None:
    expected = trained(base, tmp_path / "one", AdapterConfig(rank=2))
    first, second = load_model(base, dtype="float32"), load_model(base, dtype="float32")
    load_adapter(first, tmp_path / "one")
    load_adapter(second, tmp_path / "one")
    with switch_of(first).off():
        assert torch.equal(logits(second), expected)
        assert not torch.equal(logits(first), expected)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_over_nf4_is_merged_into_the_dequantised_base(kind: Any, base: Path, tmp_path: Path) -> None:
    expected = trained(base, tmp_path / "adapter", AdapterConfig(kind=kind, rank=4), packed=True)
    assert read_note(tmp_path / "adapter").quantization == "nf4-double"
    model = load_model(base, dtype="float32")
    put_adapters(model, [tmp_path / "adapter"])
    assert torch.allclose(logits(model), expected, atol=1e-5)
    model.save(tmp_path / "merged")
    assert torch.allclose(logits(load_model(tmp_path / "merged", dtype="float32")), expected, atol=1e-5)
    wrong = load_model(base, dtype="float32")  # into the original weights: not what was trained
    load_adapter(wrong, tmp_path / "adapter")
    merge_adapter(wrong)
    assert not torch.allclose(logits(wrong), expected, atol=1e-2)


def test_gradients_over_nf4_are_those_over_its_dense_weights(base: Path) -> None:
    packed, dense = load_model(base, dtype="float32"), load_model(base, dtype="float32")
    quantize_linears(packed.network)
    for name, module in dict(packed.network.named_modules()).items():
        if getattr(module, "quantization", None):
            dense.network.get_submodule(name).weight.data = module.dense()
    found = []
    for model in (packed, dense):
        adapt(model, AdapterConfig(rank=4, dropout=0.0), seed=1)
        stir(model)
        lengths = [len(p) for p in PROMPTS]
        model.decoder(tiny.packed(PROMPTS), Packed(lengths)).square().sum().backward()
        found.append({n: p.grad for n, p in model.network.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-4, atol=1e-3), name


def test_a_bfloat16_base_keeps_float32_adapters(base: Path) -> None:
    model = load_model(base, dtype="bfloat16")
    adapt(model, AdapterConfig(rank=4))
    out = model.decoder(tiny.packed(PROMPTS), Packed([len(p) for p in PROMPTS]))
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    for parameter in model.network.parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32
            assert parameter.grad is not None
            assert parameter.grad.dtype == torch.float32


def test_dropout_only_while_training(base: Path) -> None:
    model = load_model(base, dtype="float32")
    adapt(model, AdapterConfig(kind="dora", rank=4, dropout=0.5))
    stir(model)
    quiet = logits(model)
    assert torch.equal(logits(model), quiet)
    model.network.train()
    assert not torch.equal(logits(model), logits(model))


def test_packed_documents_get_a_prompt_each(base: Path) -> None:
    for kind in ("prompt", "prefix"):
        model = load_model(base, dtype="float32")
        adapt(model, AdapterConfig(kind=kind, virtual_tokens=4), init_tokens=[5, 9])  # type: ignore[arg-type]
        stir(model)
        together = logits(model)
        with torch.inference_mode():
            alone = [model.decoder(torch.tensor(p), Packed([len(p)])) for p in PROMPTS]
        assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_a_prefix_from_text_is_what_the_model_reads(base: Path) -> None:
    """Before training a prefix of four tokens is as if the four stood before the text."""
    model = load_model(base, dtype="float32")
    text, prompt = [5, 9, 33, 2], PROMPTS[0]
    with torch.inference_mode():
        expected = model.decoder(torch.tensor(text + prompt), Packed([len(text) + len(prompt)]))[len(text) :]
        adapt(model, AdapterConfig(kind="prefix", virtual_tokens=4), init_tokens=text)
        assert torch.allclose(model.decoder(torch.tensor(prompt), Packed([len(prompt)])), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["prompt", "prefix", "bottleneck"])
def test_generation_with_what_cannot_be_merged(kind: Any, base: Path, tmp_path: Path) -> None:
    """The cached way token by token says what the packed way says of the whole, greedy."""
    trained(base, tmp_path / "adapter", AdapterConfig(kind=kind, virtual_tokens=3, bottleneck_size=4))
    model = load_model(base, dtype="float32")
    put_adapters(model, [tmp_path / "adapter"])
    prompt = PROMPTS[0]
    params = SamplingParams(temperature=0, max_tokens=6, repetition_penalty=1.2)
    request = Request(prompt=[*virtual_ids(model.decoder), *prompt], params=params)
    said = [step.token_id for step in generate(model.decoder, [request]) if step.token_id is not None]
    text = list(prompt)
    for token in said:
        with torch.inference_mode():
            scores = model.decoder(torch.tensor(text), Packed([len(text)]))[-1]
        scores = scores.clone()
        seen = scores[torch.tensor(sorted(set(text)))]
        scores[torch.tensor(sorted(set(text)))] = torch.where(seen > 0, seen / 1.2, seen * 1.2)
        assert token == int(scores.argmax())
        text.append(token)
    with pytest.raises(ConfigError, match="cannot be merged"):
        merge_adapter(model)


def test_several_are_added_as_they_would_be_side_by_side(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "a", AdapterConfig(rank=2), seed=1)
    trained(base, tmp_path / "b", AdapterConfig(kind="dora", rank=3), seed=2)
    model = load_model(base, dtype="float32")
    load_adapter(model, tmp_path / "a", "a")
    load_adapter(model, tmp_path / "b", "b")
    switch_of(model).set_default("a", "b")
    expected = logits(model)
    put_adapters(folded := load_model(base, dtype="float32"), [tmp_path / "a", tmp_path / "b"])
    assert torch.allclose(logits(folded), expected, atol=1e-4)


def test_new_tokens_grow_the_base_again(base: Path, tmp_path: Path) -> None:
    model = load_model(base, dtype="float32")
    before = logits(model)
    grow_vocabulary(model, 100)
    assert torch.equal(logits(model)[:, :97], before)
    adapt(model, AdapterConfig(rank=2), new_tokens=[97, 98, 99])
    stir(model)
    save_adapter(model, tmp_path / "adapter")
    model.decoder(torch.tensor([5, 98]), Packed([2])).sum().backward()
    rows = model.network.get_submodule("embed.adapters.default").values.grad
    assert rows is not None
    assert rows[1].abs().max() > 0 == rows[0].abs().max()
    again = load_model(base, dtype="float32")
    put_adapters(again, [tmp_path / "adapter"])
    assert torch.allclose(logits(again), logits(model), atol=5e-4)
    with pytest.raises(ConfigError, match="outside of the vocabulary of 97"):
        adapt(load_model(base, dtype="float32"), AdapterConfig(rank=2), new_tokens=[97])


def test_train_also_is_a_copy(base: Path, tmp_path: Path) -> None:
    model = load_model(base, dtype="float32")
    plain = logits(model)
    adapt(model, AdapterConfig(rank=2, train_also=["lm_head", "embed_tokens"]))
    stir(model)
    tuned = logits(model)
    with switch_of(model).off():
        assert torch.equal(logits(model), plain)
    save_adapter(model, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["modules_to_save"] == [
        "embed_tokens",
        "lm_head",
    ]
    again = load_model(base, dtype="float32")
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(logits(again), tuned)
    merge_adapter(again)
    assert torch.allclose(logits(again), tuned, atol=1e-4)


def test_lora_plus_names_every_b(base: Path) -> None:
    model = load_model(base, dtype="float32")
    adapt(model, AdapterConfig(rank=2, lora_plus=16))
    rates = learning_rates(model)
    parameters = dict(model.network.named_parameters())
    assert set(rates.values()) == {16}
    assert len(rates) == 21
    assert all(parameters[name].shape[1] == 2 and parameters[name].requires_grad for name in rates)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AdapterConfig(targets=["q_prj"]), r"'q_prj' is no linear layer.*did you mean 'q_proj'"),
        (AdapterConfig(layers=[3]), "no layer 3; this model has 0 to 2"),
        (AdapterConfig(kind="bottleneck", targets=["q_proj"]), "behind attention and feed-forward"),
        (AdapterConfig(train_also=["lm_haed"]), "did you mean 'lm_head'"),
        (AdapterConfig(train_also=["norm"]), "neither a linear layer nor an embedding"),
        (AdapterConfig(kind="ia3", train_also=["lm_head"]), "go with lora and dora"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(config: AdapterConfig, message: str, base: Path) -> None:
    model = load_model(base, dtype="float32")
    with pytest.raises(ConfigError, match=message):
        adapt(model, config)
    assert not any("adapters" in name for name, _ in model.network.named_modules())
    assert switch_of(model).configs == {}


def test_loading_one_does_not_freeze_another(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "one", AdapterConfig(rank=2))
    model = load_model(base, dtype="float32")
    adapt(model, AdapterConfig(rank=3), name="policy")
    load_adapter(model, tmp_path / "one", "reference")
    parts = {n.split(".adapters.")[1].split(".")[0] for n, p in model.network.named_parameters() if p.requires_grad}
    assert parts == {"policy"}


def test_a_row_of_zeros_stays_zero_under_dora(base: Path) -> None:
    model = load_model(base, dtype="float32")
    model.network.get_submodule("layers.0.mlp.up").weight.data[3] = 0
    adapt(model, AdapterConfig(kind="dora", rank=2))
    assert logits(model).isfinite().all()
    merge_adapter(model)
    assert logits(model).isfinite().all()


def test_a_model_with_adapters_is_not_written_in_silence(base: Path, tmp_path: Path) -> None:
    model = load_model(base, dtype="float32")
    adapt(model, AdapterConfig(rank=2))
    with pytest.raises(ConfigError, match="merge them"):
        model.save(tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_virtual_tokens", 9, "says 9 virtual tokens"),
        ("peft_type", "PREFIX_TUNING", "has width 48"),
        ("num_transformer_submodules", 2, "num_transformer_submodules"),
    ],
)
def test_a_prompt_that_is_not_what_it_says(key: str, value: Any, message: str, base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "adapter", AdapterConfig(kind="prompt", virtual_tokens=3))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises((FormatError, ConfigError), match=message):
        load_adapter(load_model(base, dtype="float32"), tmp_path / "adapter")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer, and adapters for it."""
    folder = tmp_path_factory.mktemp("home")
    tiny_folder(folder / "model")
    trained(folder / "model", folder / "lora", AdapterConfig(rank=2), seed=1)
    trained(folder / "model", folder / "packed", AdapterConfig(rank=2), seed=2, packed=True)
    trained(folder / "model", folder / "prompt", AdapterConfig(kind="prompt", virtual_tokens=3), seed=3)
    return folder


GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.mark.parametrize("names", [["lora"], ["packed"], ["lora", "lora"]])
def test_merge_says_what_base_and_adapter_say(names: list[str], home: Path, tmp_path: Path, capsys: Any) -> None:
    adapters = [str(home / name) for name in names]
    out = tmp_path / "merged"
    assert main(["merge", str(home / "model"), *adapters, "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["out"] == str(out)
    beside = LLM(home / "model", adapter=adapters, dtype="float32")
    assert (
        LLM(out, dtype="float32").generate("the cat", GREEDY).token_ids == beside.generate("the cat", GREEDY).token_ids
    )
    assert main(["merge", str(home / "model"), *adapters, "--out", str(out)]) == 2  # it is there already


def test_a_models_own_adapters_are_not_left_behind(
    home: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Modelfile's ADAPTER belongs to the model: whoever reads weights alone refuses it, exports fold it in."""
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))
    Store().create("tuned", "FROM ./model\nADAPTER ./lora", home)
    for words in (
        ["export", "gguf", "tuned", "--out", str(tmp_path / "x.gguf")],
        ["quantize", "tuned", "--method", "rtn", "--out", str(tmp_path / "x")],
        ["train", "sft", "model=tuned", "data=x.jsonl", "--dry-run"],
    ):
        assert main(words) == 1
        assert "ADAPTER in its Modelfile" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="ADAPTER in its Modelfile"):
        load_model("tuned")
    out = tmp_path / "whole"
    assert main(["export", "hf", "tuned", "--out", str(out)]) == 0
    tokens = [LLM(name, dtype="float32").generate("the cat", GREEDY).token_ids for name in (out, "tuned")]
    assert tokens[0] == tokens[1] != LLM(home / "model", dtype="float32").generate("the cat", GREEDY).token_ids


def test_a_prompt_is_served_beside_the_model_and_never_merged(home: Path, tmp_path: Path, capsys: Any) -> None:
    llm = LLM(home / "model", adapter=[home / "lora", home / "prompt"], dtype="float32")
    assert llm.virtual == [320, 321, 322]
    many = llm.generate(["the cat", "hello there"], GREEDY)
    assert [one.token_ids for one in many] == [llm.generate(t, GREEDY).token_ids for t in ("the cat", "hello there")]
    assert many[0].token_ids != LLM(home / "model", dtype="float32").generate("the cat", GREEDY).token_ids
    [score] = llm.score(["the cat sat"])
    assert all(token < 320 for token in score.token_ids)
    assert main(["merge", str(home / "model"), str(home / "prompt"), "--out", str(tmp_path / "no")]) == 1
    assert "learned input, not a change of weights" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_run_takes_several_adapters(home: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    arguments = ["run", str(home / "model"), "the cat", "--local", "--temperature", "0", "--max-tokens", "5"]
    assert main([*arguments, "--adapter", str(home / "lora"), "--adapter", str(home / "prompt")]) == 0
    assert main([*arguments, "--adapter", "nowhere"]) == 2
    assert "nowhere: no such file or folder" in capsys.readouterr().err
