"""GGUF files of every family: what llama.cpp's conversion writes (names, reordered rows, shifted norms, metadata keys)
must compute the same as the Hugging Face folder it came from, in our reader and, where it can, in transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from tokenmill.core.errors import ConfigError
from tokenmill.formats import GGUFFile, Typed, write_gguf
from tokenmill.formats.hf_folder import write_hf_folder
from tokenmill.models import load_model
from tokenmill.models.gguf import ARCHITECTURES
from tokenmill.models.weights import file_tensors
from tokenmill.nn.context import Packed

ARCHITECTURE = {ours: gguf for gguf, ours in ARCHITECTURES.items()} | {"mistral": "llama", "mixtral": "llama"}
# Settings that a GGUF file of the family cannot say are left out of the tiny models here
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": tiny.FAMILIES["llama"] | {"attention_bias": False, "mlp_bias": False},
    "llama-tied": tiny.FAMILIES["llama-tied"],
    "llama-banded": tiny.FAMILIES["llama"]
    | {"attention_bias": False, "mlp_bias": False}
    | {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
    },
    "mistral": tiny.FAMILIES["mistral"],
    "qwen2": {k: v for k, v in tiny.FAMILIES["qwen2"].items() if k not in ("use_sliding_window", "sliding_window")},
    "qwen3": tiny.FAMILIES["qwen3"],
    "gemma2": tiny.FAMILIES["gemma2"] | {"query_pre_attn_scalar": 16},
    "gemma3": tiny.FAMILIES["gemma3"]
    | {"query_pre_attn_scalar": 16, "sliding_window_pattern": 6, "num_hidden_layers": 7, "rope_local_base_freq": 1e4},
    "phi3": tiny.FAMILIES["phi3"],
    "phi3-partial": tiny.FAMILIES["phi3"]
    | {
        "partial_rotary_factor": 0.5,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.1, 1.2],
            "long_factor": [1.0, 2.0, 3.0],
            "attention_factor": 1.5,
        },
    },
    "granite": tiny.FAMILIES["granite"],
    # 1024: transformers' own reading of GGUF keeps GPT-2's default number of positions
    "gpt2": tiny.FAMILIES["gpt2"] | {"scale_attn_by_inverse_layer_idx": False, "n_positions": 1024},
    "starcoder2": tiny.FAMILIES["starcoder2"] | {"sliding_window": None},
    "mixtral": tiny.FAMILIES["mixtral"],
    "qwen3_moe": tiny.FAMILIES["qwen3_moe"] | {"mlp_only_layers": []},
}


def metadata(config: dict[str, Any]) -> dict[str, Any]:
    """What convert_hf_to_gguf.py writes for this configuration, architecture keys only."""
    kind = config["model_type"]
    arch = ARCHITECTURE[kind]
    c = config if kind != "gpt2" else _gpt2_as_usual(config)
    keys: dict[str, Any] = {
        "context_length": c["max_position_embeddings"],
        "embedding_length": c["hidden_size"],
        "block_count": c["num_hidden_layers"],
        "feed_forward_length": c["intermediate_size"],
        "attention.head_count": c["num_attention_heads"],
        "attention.head_count_kv": c["num_key_value_heads"],
        "attention.sliding_window": c.get("sliding_window"),
        "rope.freq_base": Typed(c["rope_theta"], "float32") if "rope_theta" in c else None,
        "attn_logit_softcapping": c.get("attn_logit_softcapping"),
        "final_logit_softcapping": c.get("final_logit_softcapping"),
        "expert_count": c.get("num_local_experts") or c.get("num_experts"),
        "expert_used_count": c.get("num_experts_per_tok"),
        "expert_feed_forward_length": c.get("moe_intermediate_size"),
        "vocab_size": c["vocab_size"],
    }
    if "head_dim" in c:
        keys |= {"attention.key_length": c["head_dim"], "attention.value_length": c["head_dim"]}
        keys["rope.dimension_count"] = c["head_dim"]
    eps = "attention.layer_norm_epsilon" if "norm_epsilon" in c else "attention.layer_norm_rms_epsilon"
    keys[eps] = Typed(c.get("norm_epsilon", c.get("rms_norm_eps")), "float32")
    if kind == "granite":
        keys |= {
            "attention.scale": c["attention_multiplier"],
            "embedding_scale": c["embedding_multiplier"],
            "residual_scale": c["residual_multiplier"],
            "logit_scale": c["logits_scaling"],
        }
    if kind == "gemma3_text":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": c["rope_scaling"]["factor"]}
    if kind == "phi3":
        keys |= {"rope.scaling.original_context_length": 32}
        keys["rope.scaling.attn_factor"] = c["rope_scaling"].get("attention_factor")
        keys["rope.dimension_count"] = int(12 * c.get("partial_rotary_factor", 1.0))
    named = {f"{arch}.{key}": value for key, value in keys.items() if value is not None}
    return {"general.architecture": arch, "general.name": "tiny", **named}


def _gpt2_as_usual(c: dict[str, Any]) -> dict[str, Any]:
    return {
        "max_position_embeddings": c["n_positions"],
        "hidden_size": c["n_embd"],
        "num_hidden_layers": c["n_layer"],
        "intermediate_size": 4 * c["n_embd"],
        "num_attention_heads": c["n_head"],
        "num_key_value_heads": c["n_head"],
        "norm_epsilon": c["layer_norm_epsilon"],
        "vocab_size": c["vocab_size"],
    }


def extra_tensors(config: dict[str, Any]) -> list[tuple[str, torch.Tensor, str]]:
    scaling = config.get("rope_scaling") or {}
    if scaling.get("type") == "longrope":
        return [
            (f"rope_factors_{name}.weight", torch.tensor(scaling[f"{name}_factor"]), "F32")
            for name in ("long", "short")
        ]
    if scaling.get("rope_type") == "llama3":
        from tokenmill.nn.config import RopeConfig, RopeScaling
        from tokenmill.nn.rope import inverse_frequencies

        plain = inverse_frequencies(RopeConfig(12, config["rope_theta"]))
        banded = inverse_frequencies(RopeConfig(12, config["rope_theta"], RopeScaling("llama3", 32.0, 8192)))
        return [("rope_freqs.weight", plain / banded, "F32")]
    return []


def write(config: dict[str, Any], folder: Path, **more: Any) -> tuple[Path, Path]:
    """The same tiny model as a Hugging Face folder and as a GGUF file."""
    source = tiny.write(config, folder / "hf")
    model = load_model(source, dtype="float32")
    tensors = [(name, tensor, "F32") for name, tensor in file_tensors(model.decoder, model.family.gguf_weights)]
    path = folder / "tiny.gguf"
    write_gguf(path, {**metadata(config), **more}, [*tensors, *extra_tensors(config)])
    return source, path


def logits(path: Path) -> list[torch.Tensor]:
    lengths = [len(p) for p in tiny.PROMPTS]
    with torch.inference_mode():
        decoder = load_model(path, dtype="float32").decoder
        return list(decoder(tiny.packed(tiny.PROMPTS), Packed(lengths)).split(lengths))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_gguf_computes_what_the_folder_computes(name: str, tmp_path: Path) -> None:
    source, path = write(CONFIGS[name], tmp_path)
    for got, expected in zip(logits(path), logits(source), strict=True):
        assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


# transformers takes these from its own defaults, whatever the file says
ITS_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 128},
    "gemma2": {
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
}


@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen2", "qwen3", "gemma2", "starcoder2", "gpt2"])
def test_transformers_reads_the_same_file_alike(name: str, tmp_path: Path) -> None:
    """An independent reading of names, row order and keys, for the architectures transformers converts itself."""
    transformers = pytest.importorskip("transformers")
    vocabulary = [f"t{i}" for i in range(97)]
    tokenizer = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.token_type": [1] * 97,
        "tokenizer.ggml.merges": ["t 0"],
    }
    _, path = write(CONFIGS[name] | ITS_DEFAULTS.get(name, {}), tmp_path, **tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        for got, prompt in zip(logits(path), tiny.PROMPTS, strict=True):
            expected = theirs(torch.tensor([prompt])).logits[0]
            assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


def test_an_architecture_key_that_is_not_understood_is_refused(tmp_path: Path) -> None:
    _, path = write(CONFIGS["llama"], tmp_path, **{"llama.attention.sinks": 4})
    with pytest.raises(ConfigError, match=r"attention\.sinks"):
        load_model(path)


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    _, path = write(CONFIGS["llama"], tmp_path)
    write_gguf(path, {"general.architecture": "lama"}, [])
    with pytest.raises(ConfigError, match="did you mean 'llama'"):
        load_model(path)


def test_llama3_bands_are_recognised(tmp_path: Path) -> None:
    _, path = write(CONFIGS["llama-banded"], tmp_path)
    assert GGUFFile(path).infos()["rope_freqs.weight"].shape == (6,)
    assert load_model(path).config["rope_parameters"]["rope_type"] == "llama3"


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"rope.scaling.type": "longrope"}, "rope_factors_long"),
        ({"rope.scaling.type": "mrope"}, "mrope"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": -2.0}, "factor"),
        ({"rope.scaling.type": "linear", "rope.scaling.attn_factor": 1.2}, "attn_factor"),
        ({"expert_used_count": 2}, "expert_used_count"),
        ({"attention.causal": False}, "causal"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(keys: dict[str, Any], word: str, tmp_path: Path) -> None:
    _, path = write(CONFIGS["llama-tied"], tmp_path, **{f"llama.{key}": value for key, value in keys.items()})
    with pytest.raises(ConfigError, match=word):
        load_model(path)


def test_a_scaling_factor_counts_unless_the_type_is_none(tmp_path: Path) -> None:
    """llama.cpp: a factor alone is linear, 0 says nothing, and type none means none whatever the factor."""
    for number, (keys, kind) in enumerate(
        [
            ({"rope.scaling.factor": 4.0}, "linear"),
            ({"rope.scale_linear": 4.0}, "linear"),
            ({"rope.scaling.factor": 0.0}, "default"),
            ({"rope.scaling.factor": 4.0, "rope.scaling.type": "none"}, "default"),
        ]
    ):
        named = {f"llama.{key}": value for key, value in keys.items()}
        _, path = write(CONFIGS["llama-tied"], tmp_path / str(number), **named)
        assert load_model(path).config["rope_parameters"]["rope_type"] == kind


def test_yarn_keeps_llama_cpps_attention_factor(tmp_path: Path) -> None:
    keys = {"type": "yarn", "factor": 4.0, "original_context_length": 32}
    _, path = write(CONFIGS["llama-tied"], tmp_path, **{f"llama.rope.scaling.{k}": v for k, v in keys.items()})
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    source = tiny.write({**CONFIGS["llama-tied"], "rope_scaling": scaling}, tmp_path / "yarn")
    for got, expected in zip(logits(path), logits(source), strict=True):
        assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


def test_norms_keep_their_digits_in_bfloat16(tmp_path: Path) -> None:
    """GGUF has Gemma's norms as one plus the weight, in float32; bfloat16 near one would round the weight away."""
    source, path = write(CONFIGS["gemma2"], tmp_path)
    tensors = {name: tensor * 0.01 if "norm" in name else tensor for name, tensor in tiny.weights(CONFIGS["gemma2"])}
    write_hf_folder(source, CONFIGS["gemma2"], tensors.items())
    small = load_model(source, dtype="float32")
    named = [(name, tensor, "F32") for name, tensor in file_tensors(small.decoder, small.family.gguf_weights)]
    write_gguf(path, metadata(CONFIGS["gemma2"]), named)
    expected = load_model(source, dtype="bfloat16").decoder.norm.weight
    got = load_model(path, dtype="bfloat16")
    torch.testing.assert_close(got.decoder.norm.weight, expected, rtol=2**-8, atol=0)
    back = dict(file_tensors(got.decoder, got.family.gguf_weights))["output_norm.weight"]
    torch.testing.assert_close(back, 1.0 + expected.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "layers", "scalar"), [("gemma2", 46, 12), ("gemma2", 42, 16), ("gemma3", 62, 12)])
def test_the_27b_scales_queries_by_its_share_of_the_hidden_size(
    name: str, layers: int, scalar: int, tmp_path: Path
) -> None:
    """It is not in the file: llama.cpp knows the model by its number of layers. 48 features over 4 heads are 12."""
    _, path = write(CONFIGS[name] | {"num_hidden_layers": layers}, tmp_path)
    assert load_model(path).config["query_pre_attn_scalar"] == scalar


def test_what_a_file_leaves_out_is_llama_cpps_default(tmp_path: Path) -> None:
    _, path = write({k: v for k, v in CONFIGS["llama-tied"].items() if k != "rope_theta"}, tmp_path)
    assert load_model(path).config["rope_parameters"]["rope_theta"] == 10000.0
