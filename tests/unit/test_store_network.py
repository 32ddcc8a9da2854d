"""The store and the real sources together, against servers that speak the registry's and the hub's protocols."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.hub import Hub, Repo
from fakes.registry import Registry
from fakes.server import Server
from tokenmill.core.errors import NotFoundError
from tokenmill.store import Store
from tokenmill.store import manifest as m

GGUF = b"GGUF" + bytes(range(256)) * 2000
LAYERS = [(m.MODEL, GGUF), (m.TEMPLATE, b"{{ .Prompt }}"), (m.PARAMS, b'{"stop":["x"]}'), (m.LICENSE, b"MIT")]
FOLDER = {"config.json": b"{}", "model.safetensors": b"w" * 3000, "tokenizer.json": b"{}", "run.py": b"evil"}


@pytest.fixture
def cdn() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cdn: Server) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("TOKENMILL_TRUSTED_HOSTS", f"127.0.0.1:{cdn.port}")


@pytest.fixture
def registry(cdn: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    with Registry(cdn) as running:
        monkeypatch.setenv("TOKENMILL_OLLAMA_REGISTRY", running.url)
        running.add_model("library/tiny:latest", LAYERS)
        yield running


def test_a_model_of_the_registry_has_the_id_that_it_has_in_ollama(registry: Registry, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    files = store.pull("tiny")
    assert files.digest == hashlib.sha256(registry.manifests["library/tiny:latest"]).hexdigest()
    assert files.path.read_bytes() == GGUF
    assert (files.template, files.parameters, files.licenses) == ("{{ .Prompt }}", {"stop": ["x"]}, ["MIT"])
    assert store.resolve("ollama:tiny").source == "ollama:tiny:latest"
    with pytest.raises(NotFoundError, match="did you mean 'tiny:latest'"):
        store.resolve("tiny2:latest", pull=True)


def test_push_and_pull_on_another_machine(registry: Registry, tmp_path: Path) -> None:
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    (tmp_path / "m.gguf").write_bytes(GGUF)
    mine = here.create("me/mine", "FROM ./m.gguf\nSYSTEM hi\nPARAMETER seed 3", tmp_path)
    here.push("me/mine")
    pulled = there.pull("me/mine")
    assert (pulled.system, pulled.parameters) == (mine.system, mine.parameters)
    assert pulled.path.parent == there.root / "blobs"
    assert pulled.path.read_bytes() == GGUF
    assert str(tmp_path).encode() not in registry.manifests["me/mine:latest"]
    assert there.resolve("ollama:me/mine") == pulled


def test_a_folder_model_survives_push_and_pull(registry: Registry, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(FOLDER[name])
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    here.create("me/folder", "FROM .", tmp_path)
    here.push("me/folder")
    files = there.pull("me/folder")
    assert {path.name: path.read_bytes() for path in files.path.iterdir()} == {
        name: FOLDER[name] for name in ("config.json", "model.safetensors")
    }


def test_a_folder_of_the_hub(cdn: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    with Hub({"org/folder": Repo(FOLDER)}, cdn) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        files = store.pull("hf:org/folder")
    assert sorted(path.name for path in files.path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (files.name, files.source) == ("hf:org/folder", f"hf:org/folder at {'a' * 40}")
    assert store.resolve(files.name) == files
