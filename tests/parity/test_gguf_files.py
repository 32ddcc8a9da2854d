"""Whole GGUF files against the gguf package: ours read by its reader, its writer's read by ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

from tokenmill.formats import GGUFFile, Typed, write_gguf
from tokenmill.formats.gguf import TYPES, WRITABLE

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Tēst \N{PARTY POPPER}",
    "llama.block_count": 2,
    "llama.rope.freq_base": 10000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.tokens": ["<s>", "a", "\u0120b", ""],
    "tokenizer.ggml.scores": [0.0, -1.5, 2.0, 0.5],
    "tokenizer.ggml.token_type": [3, 1, 1, 1],
    "tokenizer.ggml.add_bos_token": True,
    "big": 1 << 40,
    "negative": -5,
}


SEARCHED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


def test_the_gguf_package_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    generator = torch.Generator().manual_seed(0)
    tensors = {f"blk.{i}.{type}": torch.randn(3, 2, 256, generator=generator) for i, type in enumerate(WRITABLE)}
    tensors["bias"] = torch.randn(7, generator=generator)
    types = {name: name.rpartition(".")[2] if "." in name else "F32" for name in tensors}
    typed = METADATA | {"part": Typed(3, "uint16"), "double": Typed(0.1, "float64")}
    write_gguf(path, typed, ((name, tensor, types[name]) for name, tensor in tensors.items()))

    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    ours = GGUFFile(path)
    assert fields == dict(ours.metadata)
    assert fields["tokenizer.ggml.tokens"] == METADATA["tokenizer.ggml.tokens"]
    assert fields["general.name"] == METADATA["general.name"]
    assert [tensor.name for tensor in reader.tensors] == list(tensors)
    for tensor in reader.tensors:
        assert tensor.tensor_type.name == types[tensor.name]
        given = tensors[tensor.name].numpy()
        if tensor.tensor_type.name in SEARCHED:  # gguf only reads these; their bytes are ggml's in test_gguf_export.py
            near = quants.dequantize(tensor.data, tensor.tensor_type).reshape(given.shape)
            assert np.abs(near - given).mean() < 0.4 * np.abs(given).mean()
        else:
            expected = quants.quantize(given, tensor.tensor_type)
            assert np.array_equal(tensor.data.view(np.uint8).ravel(), expected.view(np.uint8).ravel())
        assert tuple(reversed(tensor.shape)) == tuple(tensors[tensor.name].shape)
        assert tensor.data_offset % 32 == 0


@pytest.mark.parametrize("alignment", [None, 64])
def test_we_read_what_the_gguf_package_writes(tmp_path: Path, alignment: int | None) -> None:
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_name("théirs")
    writer.add_uint8("u8", 200)
    writer.add_int64("i64", -(1 << 40))
    writer.add_float64("f64", 0.1)
    writer.add_array("strings", ["a", "ü", ""])
    writer.add_array("floats", [0.5, 1.5])
    writer.add_array("bools", [True, False])
    rng = np.random.default_rng(0)
    raws: dict[str, np.ndarray] = {}
    for name, kind in TYPES.items():
        dtype = kind.dtype
        if dtype is not None and name != "BF16":
            array = np.frombuffer(rng.bytes(6 * kind.nbytes), dtype=str(dtype).removeprefix("torch.")).reshape(2, 3)
            writer.add_tensor(name, array)
        else:
            array = rng.integers(0, 256, (2, 3 * kind.nbytes), dtype=np.uint8)
            writer.add_tensor(name, array, raw_dtype=GGMLQuantizationType[name])
        raws[name] = array.view(np.uint8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    ours = GGUFFile(path)
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert dict(ours.metadata) == fields
    assert {tensor.name: tensor.tensor_type.name for tensor in reader.tensors} == {
        name: info.type for name, info in ours.infos().items()
    }
    for tensor in reader.tensors:
        info = ours.infos()[tensor.name]
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert info.nbytes == tensor.n_bytes
        assert np.array_equal(ours.raw(tensor.name).numpy(), raws[tensor.name])
        assert ours.load(tensor.name).shape == info.shape


def test_parts_that_the_gguf_package_splits(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    tensors = {f"t{index}": np.full((2, 32), index, dtype=np.float32) for index in range(5)}
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    paths = sorted(tmp_path.glob("*.gguf"))
    assert len(paths) == 3
    file = GGUFFile(paths[1])
    assert list(file.infos()) == list(tensors)
    assert file.metadata["general.architecture"] == "llama"
    for name, array in tensors.items():
        assert np.array_equal(file.load(name).numpy(), array)
