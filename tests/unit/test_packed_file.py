"""The packed form of a model on disk: used when it fits, never when it does not, and no failure of its own counts."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from tokenmill.formats import open_tensors
from tokenmill.models import packed_file
from tokenmill.models.load import Model, model_from_file
from tokenmill.nn.context import Packed as Context
from tokenmill.nn.packed import is_packed
from tokenmill.ops.native import native
from tokenmill.ops.packed import Packed
from tokenmill.store import Store

pytestmark = pytest.mark.skipif(native() is None, reason="needs the native kernels")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(packed_file, "LEAST_BYTES", 0)
    return tiny.write(tiny.FAMILIES["qwen2"], tmp_path / "model")


def saved(folder: Path) -> Path:
    (found,) = (folder.parent / "home" / "cache" / "packed").glob("*.packed")
    return found


def load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model, and what it wrote."""
    writers = []
    real = packed_file.PackedFile.save_soon
    monkeypatch.setattr(packed_file.PackedFile, "save_soon", lambda *args: writers.append(real(*args)))
    model = model_from_file(open_tensors(folder), pack=True)
    monkeypatch.setattr(packed_file.PackedFile, "save_soon", real)
    for writer in filter(None, writers):
        writer.join()
    return model


def logits(model: Model) -> torch.Tensor:
    with torch.inference_mode():
        return model.decoder(torch.tensor([1, 2, 3, 4]), Context([4]))


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("packed again")


def test_the_second_start_packs_nothing_and_computes_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(folder, monkeypatch)
    assert is_packed(first.network)
    written = saved(folder).stat().st_mtime_ns
    monkeypatch.setattr(Packed, "from_floats", never)
    monkeypatch.setattr(Packed, "from_blocks", never)
    second = load(folder, monkeypatch)
    assert torch.equal(logits(first), logits(second))
    assert saved(folder).stat().st_mtime_ns == written


def test_changed_weights_make_a_new_form_and_the_old_one_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(folder, monkeypatch)
    old = saved(folder)
    (weights,) = folder.glob("*.safetensors")
    os.utime(weights, ns=(1, 1))
    load(folder, monkeypatch)
    assert saved(folder) != old  # exactly one is there


def test_a_form_whose_model_is_gone_goes_with_the_next_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(folder, monkeypatch)
    old = saved(folder)
    other = shutil.copytree(folder, folder.parent / "other")
    shutil.rmtree(folder)
    abandoned = old.parent / ".x.packed.123.part"
    abandoned.write_bytes(b"half")
    os.utime(abandoned, (1, 1))
    load(other, monkeypatch)
    assert saved(other) != old
    assert not abandoned.exists()


@pytest.mark.parametrize("damage", ["header", "cut", "size", "name", "empty"])
def test_a_damaged_form_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    whole = logits(load(folder, monkeypatch))
    path, data = saved(folder), saved(folder).read_bytes()
    changed = {
        "header": b"\xff" * 64,
        "cut": data[: len(data) // 2],
        "size": data.replace(b'"size": ', b'"size":1', 1),
        "name": data.replace(b'"name": "', b'"name":"x', 1),
        "empty": b"",
    }
    assert changed[damage] != data
    path.write_bytes(changed[damage])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(logits(load(folder, monkeypatch)), whole)
    assert "is not used" in caplog.text
    assert path.read_bytes() == data  # made anew


def test_a_full_disk_or_a_forbidden_folder_costs_nothing_but_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    load(folder, monkeypatch)
    assert not list((folder.parent / "home").rglob("*.packed"))
    shutil.rmtree(folder.parent / "home")
    (folder.parent / "home").write_text("a file stands in the way")
    with caplog.at_level(logging.WARNING):
        load(folder, monkeypatch)
    assert "could not be kept" in caplog.text


def test_removing_a_model_removes_its_form(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    (folder.parent / "Modelfile").write_text(f"FROM {folder}")
    store.create("mine", (folder.parent / "Modelfile").read_text(), base_dir=folder.parent)
    load(store.resolve("mine").path, monkeypatch)
    assert saved(folder).exists()
    shutil.rmtree(folder)  # the store only links a folder; what it holds itself goes with the name
    store.remove("mine")
    assert not list((folder.parent / "home").rglob("*.packed"))
