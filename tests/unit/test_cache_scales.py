"""Scales of keys and values: what they are, how they lie in a folder, what the engine does with them; refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_kv_cache_dtype import logprobs

import tiny
from tokenmill.core.errors import ConfigError, FormatError, UsageError
from tokenmill.engine.engine import Engine
from tokenmill.engine.native_pass import NativePass
from tokenmill.engine.runner import Side, TorchPass
from tokenmill.formats import open_tensors
from tokenmill.models import load_model
from tokenmill.models.load import model_from_file
from tokenmill.nn.context import Cached, SequenceCache
from tokenmill.nn.decoder import Decoder
from tokenmill.ops.native import native
from tokenmill.quant.run import quantise
from tokenmill.quant.save import check_folder, write_folder
from tokenmill.quant.settings import settings

WIDE = {**tiny.FAMILIES["llama"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
DOCUMENTS = list(torch.randint(3, 97, (12, 100), generator=torch.Generator().manual_seed(0)))
PROMPT = DOCUMENTS[0][:60].tolist()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model quantised with scales of each kind, and without."""
    folder = tmp_path_factory.mktemp("cache")
    source = tiny.write(WIDE, folder / "source")
    for kind in ("int8", "fp8", None):
        how = settings("rtn", bits=8, group_size=32, kv_cache=kind)
        work = folder / f"work-{kind}"
        done = quantise(load_model(source, dtype="float32"), how, DOCUMENTS, work, source="t", dtype=torch.float32)
        write_folder(done, folder / str(kind), torch.float32)
        check_folder(folder / str(kind), done)
    return folder


def load(folder: Path, monkeypatch: pytest.MonkeyPatch, *, pack: bool) -> Decoder:
    """As it is served: by the kernels, or by torch over the same codes."""
    if not pack:
        monkeypatch.setattr("tokenmill.models.load.can_pack", lambda *_: False)
    return model_from_file(open_tensors(folder), pack=True).decoder


def test_scales_reach_the_largest_number_of_each_head(place: Path) -> None:
    """Against the keys and values that the plain loop's cache holds of the quantised model."""
    decoder = load_model(place / "int8", dtype="float32").decoder
    largest: dict[tuple[str, int], torch.Tensor] = {}
    for document in DOCUMENTS:
        cache = SequenceCache(2)
        with torch.no_grad():
            decoder.hidden(document, Cached([cache], [len(document)]))
        for layer in range(2):
            for side, rows in ("k", cache._keys[layer]), ("v", cache._values[layer]):
                assert rows is not None
                most = rows[: len(document)].abs().amax((0, 2))
                largest[side, layer] = torch.maximum(largest.get((side, layer), most), most)
    stored = load_file(place / "int8" / "model.safetensors")
    by_layer = load_file(place / "fp8" / "model.safetensors")
    for (side, layer), most_K in largest.items():
        name = f"model.layers.{layer}.self_attn.{side}_scale"
        assert stored[name].shape == (2, 1, 1)
        assert torch.allclose(stored[name].flatten() * 127, most_K, rtol=1e-5)
        assert by_layer[name].shape == (1,)
        assert torch.allclose(by_layer[name] * 448, most_K.amax(), rtol=1e-5)


def test_the_configuration_says_it_in_compressed_tensors_words(place: Path) -> None:
    schemes = {
        kind: json.loads((place / kind / "config.json").read_text())["quantization_config"]["kv_cache_scheme"]
        for kind in ("int8", "fp8", "None")
    }
    assert schemes["None"] is None
    told = {kind: (one["type"], one["num_bits"], one["strategy"]) for kind, one in schemes.items() if one}
    assert told == {"int8": ("int", 8, "attn_head"), "fp8": ("float", 8, "tensor")}
    assert all(one["symmetric"] and one["dynamic"] is False for one in schemes.values() if one)


@pytest.mark.parametrize(("kind", "dtype", "most"), [("int8", torch.int8, 0.1), ("fp8", torch.float8_e4m3fn, 0.5)])
def test_torch_keeps_a_cache_by_the_folders_scales(
    kind: str, dtype: torch.dtype, most: float, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(place / kind, monkeypatch, pack=False)
    engine = Engine(model, num_blocks=8, max_tokens_per_step=9)
    assert isinstance(engine._passes, TorchPass)
    assert engine._passes.layers[0][0].rows_BPKD.dtype == dtype
    exact = logprobs(Engine(model, num_blocks=8, kv_cache_dtype="fp32"), PROMPT)
    assert 1e-5 < (logprobs(engine, PROMPT) - exact).abs().max() < most
    assert torch.equal(logprobs(Engine(load(place / "None", monkeypatch, pack=False), num_blocks=8), PROMPT), exact)


def test_stored_numbers_are_the_nearest_and_what_lies_beyond_is_cut_off() -> None:
    x_TKD = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(0))
    x_TKD[0, 0, 0] = 50.0
    scale_K = torch.tensor([0.02, 0.05])
    side = Side(torch.empty(2, 4, 2, 8, dtype=torch.int8), scale_K)
    side.write(torch.tensor([3, 4, 0, 7, 1]), x_TKD)
    read_SKD = side.read(torch.tensor([0, 1]), 8, torch.float32)
    for place, x_KD in zip([3, 4, 0, 7, 1], x_TKD, strict=True):
        wanted_KD = (x_KD / scale_K[:, None]).round().clamp(-127, 127) * scale_K[:, None]
        assert torch.equal(read_SKD[place], wanted_KD)
    assert read_SKD[3, 0, 0] == pytest.approx(127 * 0.02)


@pytest.mark.skipif(native() is None, reason="the native kernels are not here")
def test_the_kernels_keep_an_int8_cache_with_scales_of_their_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale for each position: nearer than any that calibration could find, and asked for by the same folder."""
    model = load(place / "int8", monkeypatch, pack=True)
    engine = Engine(model, num_blocks=8)
    assert isinstance(engine._passes, NativePass)
    exact, plain = (logprobs(Engine(model, num_blocks=8, kv_cache_dtype=name), PROMPT) for name in ("fp32", "int8"))
    assert torch.equal(logprobs(engine, PROMPT), plain)
    assert (plain - exact).abs().max() > 1e-5
    wider = Engine(load(place / "fp8", monkeypatch, pack=True), num_blocks=8)
    assert isinstance(wider._passes, NativePass)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("model.layers.1.self_attn.v_scale"), "kv_cache_scheme asks for it"),
        (lambda t: t.update({"model.layers.0.self_attn.k_scale": torch.tensor([0.1, -0.1])}), "no scales of 2 heads"),
        (lambda t: t.update({"model.layers.0.self_attn.k_scale": torch.ones(3)}), "no scales of 2 heads"),
        (lambda t: t.update({"model.layers.0.self_attn.k_zero_point": torch.ones(1)}), "must be zero"),
    ],
)
def test_broken_scales_are_refused(
    change: Any, said: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = load_file(place / "int8" / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((place / "int8" / "config.json").read_text())
    with pytest.raises(FormatError, match=said):
        load(tmp_path, monkeypatch, pack=False)


def test_other_schemes_and_layouts_are_refused(place: Path, tmp_path: Path) -> None:
    config = json.loads((place / "int8" / "config.json").read_text())
    config["quantization_config"]["kv_cache_scheme"]["num_bits"] = 4
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((place / "int8" / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="8 bits, symmetric"):
        open_tensors(tmp_path)
    with pytest.raises(UsageError, match="layout compressed-tensors, not by gptq"):
        settings("gptq", layout="gptq", kv_cache="int8")
    with pytest.raises(UsageError, match="a cache of int4 is not possible: int8, fp8"):
        settings("rtn", kv_cache="int4")  # type: ignore[arg-type]
    assert settings("rtn", kv_cache="int8").calibrated
