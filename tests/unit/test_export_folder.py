"""export hf, export vllm: folders with card and checksums that are read back, whole or not there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

import tokenmill
from fakes.tiny_llm import tiny_folder
from tiny import ENCODERS, FAMILIES, write
from tokenmill.cli.app import main
from tokenmill.core.checksums import check_sums
from tokenmill.core.errors import FormatError
from tokenmill.evals import export_folder
from tokenmill.models.load import Model


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A model that a run has written, with what a run's folder has."""
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))
    run = tmp_path / "run"
    run.mkdir()
    tiny_folder(run / "model")
    (tmp_path / "texts.jsonl").write_text('{"text": "hello"}\n')
    config = f"recipe: sft\nmodel: base\ndata:\n  path: {tmp_path / 'texts.jsonl'}\n"
    (run / "config.yaml").write_text(config)
    lines = [{"step": 1, "loss": 3.5, "bits_per_byte": 2.5}, {"step": 2, "loss": 3.25, "bits_per_byte": 2.125}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "ppl.json").write_text('{"ppl": 12.345, "tokens": 99, "text": "/home/me/book.txt"}\n')
    return tmp_path


def test_a_folder_has_all_that_belongs_to_a_model(place, capsys) -> None:
    words = ["export", "hf", str(place / "run" / "model"), "--license", "apache-2.0", "--out", str(place / "out")]
    assert main([*words, "--results", str(place / "ppl.json"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["check_kl"] == pytest.approx(0.0, abs=1e-6)
    out = place / "out"
    names = {one.name for one in out.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert names >= {"tokenizer_config.json", "chat_template.jinja", "SHA256SUMS"}
    sums = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    assert sums.keys() == names - {"SHA256SUMS"}
    assert all(hashlib.sha256((out / name).read_bytes()).hexdigest() == digest for name, digest in sums.items())
    card = (out / "README.md").read_text()
    for part in ("license: apache-2.0", "| ppl | 12.345 |", "| bits_per_byte | 2.125 |", "recipe: sft", "texts.jsonl",
                 hashlib.sha256((place / "texts.jsonl").read_bytes()).hexdigest()):  # fmt: skip
        assert part in card, part
    assert "/home/me" not in card
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [0, 2]  # the text's end and the turn's
    original, again = (tokenmill.load_model(path).decoder for path in (place / "run" / "model", out))
    for (name, one), (_, other) in zip(original.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_another_dtype_and_the_command_that_serves_it(place, capsys) -> None:
    words = ["export", "vllm", str(place / "run" / "model"), "--dtype", "bfloat16", "--out", str(place / "narrow")]
    # heads of 12 features: what vLLM would refuse is refused here
    assert main(words) == 1
    assert "multiple of 8" in capsys.readouterr().err
    assert not (place / "narrow").exists()
    words[1] = "hf"
    assert main(words) == 0
    assert json.loads((place / "narrow" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (FAMILIES["gpt2"], "number of the layer"),
        (ENCODERS["bert"], "does not continue a text"),
        ({**FAMILIES["llama-tied"]}, None),
    ],
    ids=["gpt2", "bert", "llama"],
)
def test_what_vllm_would_refuse(config, why, tmp_path) -> None:
    model = tokenmill.load_model(write(config, tmp_path))
    if why is None:
        return export_folder.check_vllm(model, "m")
    with pytest.raises(tokenmill.core.errors.ConfigError, match=why):
        export_folder.check_vllm(model, "m")


def test_a_folder_that_reads_back_otherwise_gets_no_name(place, monkeypatch, capsys) -> None:
    """A weight that is damaged on its way to the disk, and a file that is after its sum was taken."""
    save = Model.save

    def damaged(model: Model, folder: Path) -> None:
        model.decoder.layers[0].mlp.down.weight.data.mul_(-3)
        save(model, folder)

    monkeypatch.setattr(Model, "save", damaged)
    words = ["export", "hf", str(place / "run" / "model"), "--out", str(place / "out")]
    assert main(words) == 1
    assert "nats a token from the original" in capsys.readouterr().err
    assert not (place / "out").exists()
    monkeypatch.setattr(Model, "save", save)
    assert main(words) == 0
    (place / "out" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(FormatError, match=r"tokenizer_config\.json"):
        check_sums(place / "out")
