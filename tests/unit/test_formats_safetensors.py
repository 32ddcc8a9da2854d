"""Safetensors files and Hugging Face folders: read in place, written complete, refused when they lie."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from tokenmill.core.errors import ConfigError, FormatError, UsageError
from tokenmill.formats import (
    GGUFFile,
    HFFolder,
    SafetensorsFile,
    open_tensors,
    safetensors_file,
    save_tensors,
    write_gguf,
    write_hf_folder,
)


def container(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape: list[Any], start: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


GOOD = entry([2], 0, 8)
BROKEN = {
    "empty": (b"", "0 bytes"),
    "short": (b"\x01\x00", "2 bytes"),
    "header length": (container({}, length=(1 << 64) - 1), "header length"),
    "header beyond the end": (container({}, length=3), "header length"),
    "pickle": (b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s." * 3, "header length"),
    "not UTF-8": (container(b'{"\xff": 1}'), "UTF-8"),
    "not JSON": (container(b'{"a": '), "JSON"),
    "not an object": (container(b"[1]"), "object"),
    "deep JSON": (container(b'{"a":' + b"[" * 100_000), "JSON"),
    "huge integer": (container(b'{"a":' + b"9" * 10_000 + b"}"), "JSON"),
    "duplicate name": (
        container(b'{"a":' + json.dumps(GOOD).encode() + b',"a":' + json.dumps(GOOD).encode() + b"}", bytes(8)),
        "'a' occurs twice",
    ),
    "metadata": (container({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata is a list": (container({"__metadata__": []}), "__metadata__"),
    "no dtype": (container({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "must have dtype"),
    "extra key": (container({"a": GOOD | {"x": 1}}, bytes(8)), "nothing else"),
    "entry is a list": (container({"a": []}), "must have dtype"),
    "dtype": (container({"a": entry([2], 0, 8, "F33")}, bytes(8)), r"did you mean 'F32'"),
    "dtype is a list": (container({"a": entry([2], 0, 8, [])}, bytes(8)), "not known"),
    "negative size": (container({"a": entry([-2], 0, 8)}, bytes(8)), "shape"),
    "fractional size": (container({"a": entry([2.0], 0, 8)}, bytes(8)), "shape"),
    "boolean size": (container({"a": entry([True], 0, 4)}, bytes(4)), "shape"),
    "shape is text": (container({"a": entry("2", 0, 8)}, bytes(8)), "shape"),  # type: ignore[arg-type]
    "shape overflows": (container({"a": entry([1 << 62, 1 << 62], 0, 8)}, bytes(8)), "overflows"),
    "wraps to a small size": (container({"a": entry([(1 << 62) + 1, 4], 0, 16)}, bytes(16)), "overflows"),
    "overflow behind a zero": (container({"a": entry([0, 1 << 62, 1 << 62], 0, 0)}), "overflows"),
    "too many dimensions": (container({"a": entry([1] * 65, 0, 4)}, bytes(4)), "64"),
    "wrong shape": (container({"a": entry([3], 0, 8)}, bytes(8)), "takes 12 bytes, but data_offsets give 8"),
    "backwards": (container({"a": entry([2], 8, 0)}, bytes(8)), "data_offsets"),
    "negative offset": (container({"a": entry([2], -8, 0)}, bytes(8)), "data_offsets"),
    "three offsets": (container({"a": {**GOOD, "data_offsets": [0, 8, 8]}}, bytes(8)), "data_offsets"),
    "beyond the end": (container({"a": GOOD}, bytes(7)), "has 7 bytes, but the header describes 8"),
    "trailing data": (container({"a": GOOD}, bytes(9)), "has 9 bytes"),
    "absurd offsets": (container({"a": entry([1 << 40], 0, 1 << 42)}, bytes(8)), "header describes"),
    "overlap": (container({"a": GOOD, "b": entry([2], 4, 12)}, bytes(12)), "overlaps tensor 'a'"),
    "hole": (container({"a": GOOD, "b": entry([2], 12, 20)}, bytes(20)), "leaves a hole after tensor 'a'"),
    "hole at the start": (container({"a": entry([2], 4, 12)}, bytes(12)), "leaves a hole after the header"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_by_name_and_place(tmp_path: Path, name: str) -> None:
    data, problem = BROKEN[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=problem) as caught:
            SafetensorsFile(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.path == str(path)
    assert caught.value.where


def test_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.randn(2, 3), "b": torch.randn(4).bfloat16(), "i": torch.arange(3), "e": torch.empty(0, 2)}
    save_file(tensors, path)
    file = SafetensorsFile(path)
    for name, tensor in tensors.items():
        assert torch.equal(file.load(name), tensor)
        assert file.infos()[name].shape == tuple(tensor.shape)
        assert file.infos()[name].nbytes == tensor.nbytes
        if tensor.numel():
            assert file.load(name).data_ptr() == file.load(name).data_ptr()
    before = path.read_bytes()
    file.load("a").zero_()
    assert path.read_bytes() == before
    assert file.load("b", torch.float32).dtype == torch.float32
    with pytest.raises(FormatError, match="no such tensor"):
        file.load("c")


def test_a_type_that_torch_lacks_is_listed_but_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(container({"a": entry([4], 0, 3, "F6_E2M3")}, bytes(3)))
    file = SafetensorsFile(path)
    assert file.infos()["a"].type == "F6_E2M3"
    with pytest.raises(FormatError, match="torch cannot hold F6_E2M3"):
        file.load("a")


def test_folder_round_trip_in_shards(tmp_path: Path) -> None:
    path = tmp_path / "model"
    base = torch.randn(6, 10)
    tensors = {"t": base.t(), "slice": base[1:3], "whole": base, "p": torch.nn.Parameter(base.half())}
    tensors["scalar"] = torch.tensor(1)
    write_hf_folder(path, {"a": [1]}, tensors.items(), generation_config={"b": 2}, max_shard_bytes=300)
    names = sorted(file.name for file in path.iterdir())
    assert names == [
        "config.json",
        "generation_config.json",
        "model-00001-of-00004.safetensors",
        "model-00002-of-00004.safetensors",
        "model-00003-of-00004.safetensors",
        "model-00004-of-00004.safetensors",
        "model.safetensors.index.json",
    ]
    folder = HFFolder(path)
    assert folder.config == {"a": [1]}
    assert folder.generation_config == {"b": 2}
    assert set(folder.infos()) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(folder.load(name), tensor)
    with pytest.raises(FormatError, match="no such tensor"):
        folder.load("x")


def test_a_tensor_may_go_under_two_names(tmp_path: Path) -> None:
    shared = torch.randn(3, 4)
    write_hf_folder(tmp_path, {}, [("embedding", shared), ("head", torch.nn.Parameter(shared))])
    assert all(torch.equal(HFFolder(tmp_path).load(name), shared) for name in ("embedding", "head"))


def test_rewriting_replaces_weights_and_keeps_the_rest(tmp_path: Path) -> None:
    write_hf_folder(tmp_path, {"v": 1}, [("a", torch.ones(9)), ("b", torch.ones(9))], max_shard_bytes=36)
    (tmp_path / "tokenizer.json").write_text("{}")
    old = HFFolder(tmp_path)
    # the source may be the very folder that is being replaced
    write_hf_folder(tmp_path, {"v": 2}, ((name, old.load(name)) for name in old.infos()))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert HFFolder(tmp_path).config == {"v": 2}
    assert torch.equal(HFFolder(tmp_path).load("b"), torch.ones(9))
    modes = {file.stat().st_mode for file in tmp_path.iterdir()}
    assert len(modes) == 1, "weights must be as readable as any other file"


def test_a_failed_write_leaves_the_old_model(tmp_path: Path) -> None:
    write_hf_folder(tmp_path, {"v": 1}, [("a", torch.ones(2))])
    with pytest.raises(FormatError, match="given twice"):
        write_hf_folder(tmp_path, {"v": 2}, [("a", torch.zeros(2)), ("a", torch.zeros(2))])
    with pytest.raises(ConfigError, match=r"config\.json"):
        write_hf_folder(tmp_path, {"v": torch.ones(1)}, [])
    with pytest.raises(UsageError, match="max_shard_bytes"):
        write_hf_folder(tmp_path, {}, [], max_shard_bytes=0)
    assert HFFolder(tmp_path).config == {"v": 1}
    assert HFFolder(tmp_path).load("a").sum() == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def sharded(folder: Path) -> Path:
    write_hf_folder(folder, {}, [("a", torch.ones(9)), ("b", torch.ones(9))], max_shard_bytes=36)
    return folder / "model.safetensors.index.json"


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "C:model.safetensors",
        ".hidden.safetensors",
        "model\n.safetensors",
        "model\x00.safetensors",
        "pytorch_model.bin",
        "",
        "..",
        7,
        None,
        ["model.safetensors"],
    ],
)
def test_an_index_cannot_reach_outside_its_folder(tmp_path: Path, shard: Any) -> None:
    folder = tmp_path / "in"
    index = sharded(folder)
    save_file({"b": torch.ones(1)}, tmp_path / "model.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": shard}}))
    with pytest.raises(FormatError, match="plain name") as caught:
        HFFolder(folder)
    assert "'b'" in caught.value.where


def test_an_index_must_be_true(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    for text, problem in (
        ("[]", "object"),
        ("{}", "weight_map"),
        ('{"weight_map": {"a": 1, "a": 2}}', "occurs twice"),
        (json.dumps({"weight_map": {"a": first, "b": "gone.safetensors"}}), "missing beside it: gone"),
        (json.dumps({"weight_map": {"a": second, "b": second}}), "places here are not in it: a"),
    ):
        index.write_text(text)
        with pytest.raises(FormatError, match=problem):
            HFFolder(tmp_path)
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / second)
    index.write_text(json.dumps({"weight_map": {"a": first, "b": second}}))
    with pytest.raises(FormatError, match="is also in model-00001"):
        HFFolder(tmp_path)


def test_shards_may_be_links_as_in_the_hub_cache(tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    write_hf_folder(folder, {}, [("a", torch.ones(9))])
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    assert HFFolder(folder).load("a").sum() == 9


def test_pickled_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(FormatError, match=r"pytorch_model\.bin.*runs whatever code.*save_pretrained"):
        open_tensors(tmp_path)
    with pytest.raises(FormatError, match="pickled"):
        open_tensors(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("text", "problem"), [(b"{", "JSON"), (b"[]", "object"), (b"\xff", "UTF-8"), (b"[" * 10**6, "JSON"), (b"", "JSON")]
)
def test_broken_configs_are_refused(tmp_path: Path, text: bytes, problem: str) -> None:
    write_hf_folder(tmp_path, {}, [])
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(FormatError, match=problem) as caught:
        HFFolder(tmp_path)
    assert "config.json" in str(caught.value)


def test_open_tensors_picks_by_what_the_path_is(tmp_path: Path) -> None:
    write_hf_folder(tmp_path / "hf", {}, [("a", torch.ones(1))])
    write_gguf(tmp_path / "m.gguf", {}, [("a", torch.ones(1), "F32")])
    (tmp_path / "sha256-00").write_bytes((tmp_path / "m.gguf").read_bytes())
    (tmp_path / "notes.txt").write_text("hello")
    assert isinstance(open_tensors(tmp_path / "hf"), HFFolder)
    assert isinstance(open_tensors(tmp_path / "hf" / "model.safetensors"), SafetensorsFile)
    assert isinstance(open_tensors(tmp_path / "m.gguf"), GGUFFile)
    assert isinstance(open_tensors(tmp_path / "sha256-00"), GGUFFile)
    for path, problem in (
        (tmp_path / "notes.txt", "is not a model"),
        (tmp_path / "absent", "no such file"),
        (tmp_path, r"config\.json: is missing"),
    ):
        with pytest.raises(FormatError, match=problem):
            open_tensors(path)
    with pytest.raises(FormatError, match="is not a folder"):
        HFFolder(tmp_path / "notes.txt")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FormatError, match="no weights"):
        open_tensors(tmp_path)


def test_a_full_disk_is_the_systems_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"a": torch.zeros(4)}
    save_tensors(tensors, tmp_path / "a.safetensors")
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode, (
        "as shareable as any file"
    )
    with pytest.raises(FileNotFoundError) as missing:
        save_tensors(tensors, tmp_path / "no" / "a.safetensors")
    assert missing.value.filename == str(tmp_path / "no" / "a.safetensors")

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors_file, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        write_hf_folder(tmp_path / "out", {}, tensors.items())
    assert not list((tmp_path / "out").iterdir()), "nothing of it is left"
