"""GGUF out against what we know to be right: llama.cpp's keys for every family, the default model's own file, PEFT."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_gguf_models import CONFIGS, extra_tensors, logits, metadata
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import tiny
from fakes.tiny_llm import tiny_folder
from texts import corpus, training_text
from tokenmill.adapt import adapt, save_adapter
from tokenmill.adapt.folder import load_adapter
from tokenmill.adapt.gguf import gguf_of_adapter
from tokenmill.config.parts import AdapterConfig
from tokenmill.core.errors import ConfigError, FormatError
from tokenmill.evals.perplexity import perplexity
from tokenmill.formats import GGUFFile, Typed, write_gguf
from tokenmill.formats.gguf import dequantize
from tokenmill.models import Model, load_model
from tokenmill.models.gguf_keys import ARCHITECTURE, architecture_keys
from tokenmill.models.load import load_tokenizer
from tokenmill.nn.context import Packed
from tokenmill.ops.blocks import encode_blocks
from tokenmill.quant.ggml_export import WITHOUT_WINDOWS, source_from_gguf, source_from_model, write_source
from tokenmill.text.gguf import tokenizer_from_gguf
from tokenmill.text.gguf_keys import gguf_from_tokenizer
from tokenmill.text.tokenizer import Tokenizer

IMPLIED = (
    "key_length",
    "value_length",
    "dimension_count",
    "freq_base_swa",
    "scaling.type",
    "attn_factor",
    "general.name",
)
"""Keys that say what llama.cpp would take for granted: one side may leave them out."""


def byte_level(vocab_size: int = 97) -> Tokenizer:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(training_text(), trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False))
    return Tokenizer(backend, origin="here")


def plain(value: Any) -> Any:
    value = value.value if isinstance(value, Typed) else value
    return pytest.approx(value, rel=1e-6) if isinstance(value, float) else value


@pytest.mark.parametrize("name", list(CONFIGS))
def test_keys_are_those_of_llama_cpp_s_conversion(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    model = load_model(tiny.write(config, tmp_path / "hf"), dtype="float32")
    keys, tables = architecture_keys(model, tmp_path)
    expected = metadata(config)
    for key in keys.keys() & expected.keys():
        assert plain(keys[key]) == plain(expected[key]), key
    one_sided = {key for key in keys.keys() ^ expected.keys() if not key.endswith(IMPLIED)}
    assert one_sided <= {"gpt2.attention.head_count_kv"}
    theirs = {key: table for key, table, _ in extra_tensors(config)}
    assert tables.keys() == theirs.keys()
    assert all(torch.allclose(tables[key], theirs[key]) for key in tables)


@pytest.mark.parametrize("name", ["llama-banded", "gemma2", "phi3-partial", "gpt2", "qwen3_moe"])
def test_a_written_file_computes_what_the_folder_computes(name: str, tmp_path: Path) -> None:
    folder = tiny.write(CONFIGS[name] | {"vocab_size": 300}, tmp_path / "hf")
    model = load_model(folder, dtype="float32")
    write_source(source_from_model(model, byte_level(290), folder), tmp_path / "m.gguf", "F32")
    for got, expected in zip(logits(tmp_path / "m.gguf"), logits(folder), strict=True):
        assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
    tokens = GGUFFile(tmp_path / "m.gguf").metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == 300
    assert tokens[299] == "[PAD299]"


@pytest.mark.parametrize(
    ("name", "words"), [("llama", "mlp.bias"), ("qwen2", "window"), ("gemma2", "scale"), ("gpt2", "scale")]
)
def test_what_gguf_cannot_say_is_refused(name: str, words: str, tmp_path: Path) -> None:
    model = load_model(tiny.write(tiny.FAMILIES[name], tmp_path / "hf"), dtype="float32")
    with pytest.raises(ConfigError, match="GGUF has no way to say") as caught:
        architecture_keys(model, tmp_path)
    assert words in str(caught.value)


def test_dynamic_scaling_and_encoders_are_refused(tmp_path: Path) -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    config = CONFIGS["llama"] | {"rope_scaling": scaling}
    with pytest.raises(ConfigError, match="dynamic"):
        architecture_keys(load_model(tiny.write(config, tmp_path / "hf"), dtype="float32"), tmp_path)


def test_the_default_model_s_tokenizer_comes_back_as_its_file_has_it(default_gguf: Path) -> None:
    file = GGUFFile(default_gguf)
    keys = gguf_from_tokenizer(load_tokenizer(default_gguf), len(file.metadata["tokenizer.ggml.tokens"]), default_gguf)
    for key in ("model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id", "unknown_token_id"):
        assert keys[f"tokenizer.ggml.{key}"] == file.metadata[f"tokenizer.ggml.{key}"], key
    assert keys["tokenizer.chat_template"] == file.metadata["tokenizer.chat_template"]


def test_the_default_model_s_blocks_are_copied_or_encoded(default_gguf: Path, tmp_path: Path) -> None:
    """One matrix of it, in both ways."""
    file = GGUFFile(default_gguf)
    source, name = source_from_gguf(file), "blk.3.attn_k.weight"
    assert source.requantised == "Q4_1"
    assert torch.equal(source.blocks(name, "Q4_1"), file.raw(name))  # type: ignore[arg-type]
    assert source.blocks(name, "Q4_K") is None
    again = dequantize(encode_blocks(source.load(name), "Q8_0"), "Q8_0")
    assert (again - file.load(name)).abs().max() < 0.01


def _word_piece() -> Backend:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(training_text(), trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    pairs = [("[CLS]", 2), ("[SEP]", 3)]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pairs)
    return backend


def test_word_pieces_come_back() -> None:
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    tokenizer = Tokenizer(_word_piece(), origin="here", names=names)
    keys = gguf_from_tokenizer(tokenizer, tokenizer.vocab_size, Path("here"))
    again = tokenizer_from_gguf(keys, Path("here"))
    assert all(again.encode(text) == tokenizer.encode(text) for text in corpus())


def test_a_tokenizer_that_gguf_cannot_describe_is_refused() -> None:
    odd = byte_level(300)
    odd.backend().pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("e", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(FormatError, match="no name for"):
        gguf_from_tokenizer(odd, 300, Path("here"))
    with pytest.raises(FormatError, match="for an embedding of 7 rows"):
        gguf_from_tokenizer(byte_level(), 7, Path("here"))
    words = Tokenizer(Backend(models.WordLevel({"a": 0}, unk_token="a")), origin="here")
    with pytest.raises(FormatError, match="WordLevel"):
        gguf_from_tokenizer(words, 9, Path("here"))


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_windows_that_llama_cpp_passes_over_are_told(name: str, tmp_path: Path) -> None:
    folder = tiny.write(CONFIGS[name] | {"vocab_size": 300}, tmp_path / "hf")
    source = source_from_model(load_model(folder, dtype="float32"), byte_level(290), folder)
    written = write_source(source, tmp_path / "m.gguf", "F32")
    assert written.window == (CONFIGS[name]["sliding_window"] if name == "mistral" else None)


TOOLS = os.environ.get("TOKENMILL_LLAMA_TOOLS")
"""A folder with llama-perplexity."""


def perplexities(model: Model, tokenizer: Tokenizer, folder: Path, *more: object) -> tuple[float, float]:
    """Of a text by llama-perplexity, from ``m.gguf``, and by us, from the model; by the same windows."""
    text = "the cat sat on the mat and the dog sat on the log. hello there. " * 40
    (folder / "text").write_text(text)
    words = [f"{TOOLS}/llama-perplexity", "-m", folder / "m.gguf", "-f", folder / "text", "-c", "128", "-t", "1"]
    found = None
    for _ in range(5):  # its log is cut off now and then
        run = subprocess.run([*words, "-ctk", "f32", "-ctv", "f32", *more], capture_output=True, text=True, check=True)
        if (found := re.search(r"Final estimate: PPL = ([\d.]+)", run.stdout + run.stderr)) is not None:
            break
    assert found is not None
    token_ids = tokenizer.encode(text)
    return float(found[1]), perplexity(model.decoder, token_ids, ctx=128, byte_lengths=[1] * len(token_ids)).ppl


needs_llama_cpp = pytest.mark.skipif(not TOOLS, reason="TOKENMILL_LLAMA_TOOLS names no folder of its programs")


@needs_llama_cpp
@pytest.mark.parametrize("name", list(CONFIGS))
def test_llama_cpp_computes_the_same(name: str, tmp_path: Path) -> None:
    """Perplexity of a text in both, by the same windows; what is left are its tables of GELU in 16 bits."""
    folder = tiny_folder(tmp_path / "hf")
    ids = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": None}
    long = "n_positions" if name == "gpt2" else "max_position_embeddings"
    config = CONFIGS[name] | ids | {long: max(512, CONFIGS[name].get(long, 0))}
    if ARCHITECTURE[config["model_type"]] in WITHOUT_WINDOWS and "sliding_window" in config:
        config |= {"sliding_window": None}
    (folder / "model.safetensors").unlink()
    tiny.write(config, folder)
    model, tokenizer = load_model(folder, dtype="float32"), load_tokenizer(folder)
    write_source(source_from_model(model, tokenizer, folder), tmp_path / "m.gguf", "F32")
    theirs, ours = perplexities(model, tokenizer, tmp_path)
    assert theirs == pytest.approx(ours, rel=1e-3)


@needs_llama_cpp
def test_llama_cpp_applies_an_adapter_alike(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text()) | {"attention_bias": False, "mlp_bias": False}
    (folder / "model.safetensors").unlink()
    tiny.write(config, folder)
    model, tokenizer = load_model(folder, dtype="float32"), load_tokenizer(folder)
    write_source(source_from_model(model, tokenizer, folder), tmp_path / "m.gguf", "F32")
    plain_ppl = perplexities(model, tokenizer, tmp_path)[1]
    adapt(model, AdapterConfig(rank=2))
    for number, (name, parameter) in enumerate(model.network.named_parameters()):
        if ".adapters." in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(number))
    save_adapter(model, tmp_path / "lora")
    keys, tensors = gguf_of_adapter(load_model(folder, dtype="float32"), tmp_path / "lora")
    write_gguf(tmp_path / "lora.gguf", keys, tensors)
    theirs, ours = perplexities(model, tokenizer, tmp_path, "--lora", tmp_path / "lora.gguf")
    assert theirs == pytest.approx(ours, rel=1e-3)
    assert abs(ours / plain_ppl - 1) > 0.01


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_of_peft_goes_into_gguf(rslora: bool, tmp_path: Path) -> None:
    """Folder and file change the model alike, with ranks that differ and rows that llama's files have reordered."""
    transformers = pytest.importorskip("transformers")
    folder = tiny.write(CONFIGS["llama"], tmp_path / "hf")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=rslora, rank_pattern={"k_proj": 2}, target_modules=["q_proj", "k_proj", "up_proj"]
    )
    peft = get_peft_model(base, config)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    peft.save_pretrained(tmp_path / "adapter")
    model = load_model(folder, dtype="float32")
    keys, tensors = gguf_of_adapter(model, tmp_path / "adapter")
    assert keys["adapter.type"] == "lora"
    write_gguf(tmp_path / "a.gguf", keys, tensors)
    found = []
    for adapter in (tmp_path / "adapter", tmp_path / "a.gguf"):
        model = load_model(folder, dtype="float32")
        load_adapter(model, adapter)
        with torch.inference_mode():
            found.append(model.decoder(torch.tensor(tiny.PROMPTS[0]), Packed([len(tiny.PROMPTS[0])])))
    plain_model = load_model(folder, dtype="float32")
    with torch.inference_mode():
        before = plain_model.decoder(torch.tensor(tiny.PROMPTS[0]), Packed([len(tiny.PROMPTS[0])]))
    assert (found[0] - before).abs().max() > 0.1
    assert torch.allclose(found[0], found[1], atol=1e-4)
