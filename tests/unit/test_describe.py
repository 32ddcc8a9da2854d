"""What `show` reads from headers: GGUF files and Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from tokenmill.core.errors import TokenmillError
from tokenmill.formats import write_gguf, write_hf_folder
from tokenmill.models.describe import describe

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.context_length": 512,
    "llama.embedding_length": 32,
    "tokenizer.chat_template": "{{ messages }}{% if tools %}{{ tools }}{% endif %}",
}


def gguf(path: Path, **more: Any) -> Path:
    tensors = [("a.weight", torch.ones(2, 64), "Q8_0"), ("b.weight", torch.ones(3), "F32")]
    write_gguf(path, {**METADATA, **more}, tensors)
    return path


def test_gguf(tmp_path: Path) -> None:
    seen = describe(gguf(tmp_path / "m.gguf"))
    assert (seen.format, seen.architecture, seen.parameters) == ("gguf", "llama", 131)
    assert (seen.context_length, seen.embedding_length) == (512, 32)
    assert seen.quantization == "Q8_0", "most bytes are"
    assert seen.capabilities == ("completion", "tools")
    assert [(t.name, t.shape) for t in seen.tensors] == [("a.weight", (2, 64)), ("b.weight", (3,))]


@pytest.mark.parametrize(("value", "said"), [(3, "Q4_1"), (0, "F32"), (15, "Q4_K_M"), (4711, "Q8_0")])
def test_gguf_file_type(tmp_path: Path, value: int, said: str) -> None:
    """The file type names mixtures that no tensor's type does; an unknown number is no answer."""
    assert describe(gguf(tmp_path / "m.gguf", **{"general.file_type": value})).quantization == said


def test_folder(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_positions": 64, "n_embd": 8}
    write_hf_folder(tmp_path / "m", config, [("w", torch.ones(4, 8, dtype=torch.bfloat16)), ("b", torch.ones(2))])
    seen = describe(tmp_path / "m")
    assert (seen.format, seen.architecture, seen.parameters, seen.quantization) == ("safetensors", "gpt2", 34, "BF16")
    assert (seen.context_length, seen.embedding_length) == (64, 8)
    assert (seen.template, seen.capabilities) == (None, ("completion",))
    (tmp_path / "m" / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{{ tools }}"}), encoding="utf-8"
    )
    assert describe(tmp_path / "m").capabilities == ("completion", "tools")
    (tmp_path / "m" / "chat_template.jinja").write_text("plain", encoding="utf-8")
    assert describe(tmp_path / "m").template == "plain", "its own file wins, as in transformers"


def test_packed_weights_are_not_counted(tmp_path: Path) -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}
    write_hf_folder(tmp_path / "m", config, [("w", torch.ones(4, 8, dtype=torch.int32))])
    seen = describe(tmp_path / "m")
    assert (seen.parameters, seen.quantization) == (None, "gptq")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"quant_method": "awq", "bits": 4}, "awq, 4 bits"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}, "bitsandbytes, 8 bits"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"weights": {"num_bits": 3}}, "b": {"weights": {"num_bits": 8}}, "c": {}},
            },
            "compressed-tensors, 3 to 8 bits",
        ),
    ],
)
def test_packed_weights_are_counted_by_the_shape_of_the_model(
    tmp_path: Path, asked: dict[str, object], said: str
) -> None:
    folder = tiny.write(tiny.FAMILIES["llama"], tmp_path / "m")
    plain = describe(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": asked}))
    assert (describe(folder).parameters, describe(folder).quantization) == (plain.parameters, said)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF nonsense")
    for path in (tmp_path / "m.gguf", tmp_path, tmp_path / "nowhere"):
        with pytest.raises(TokenmillError):
            describe(path)
