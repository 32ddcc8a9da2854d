"""Models of Ollama, of Hugging Face's cache and of LM Studio, used where they are and never written to."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from fakes.store_sources import GGUF, hex_of
from tokenmill.core.errors import FormatError, NotFoundError, StoreError
from tokenmill.store import Store, foreign

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLLAMA = "application/vnd.ollama.image."


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "tokenmill"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def write(path: Path, data: bytes = GGUF) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def ollama_model(root: Path, name: str, *layers: tuple[str, bytes], **changes: Any) -> Path:
    """Lay out a model as `ollama create` does."""
    config = {"model_format": "gguf", "model_family": "llama", "file_type": "Q4_0", "os": "linux"}
    plain = []
    for kind, data in [("config", json.dumps(config).encode()), *layers]:
        write(root / "blobs" / f"sha256-{hex_of(data)}", data)
        media = "application/vnd.docker.container.image.v1+json" if kind == "config" else OLLAMA + kind
        plain.append({"mediaType": media, "digest": f"sha256:{hex_of(data)}", "size": len(data)})
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": plain[0],
        "layers": plain[1:],
        **changes,
    }
    return write(root / "manifests" / name, json.dumps(manifest).encode())


def hub_model(cache: Path, repo: str, files: dict[str, bytes], ref: str | None = "main") -> Path:
    """Lay out a repository as huggingface_hub does: refs, blobs, and a snapshot of links to them."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    for name, data in files.items():
        blob = write(folder / "blobs" / hex_of(data), data)
        link = folder / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if ref:
        write(folder / "refs" / ref, COMMIT.encode())
    return folder


def frozen(root: Path) -> dict[str, tuple[int, int]]:
    """Everything below `root` with its times: what must not change when it is only read."""
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in root.rglob("*")}


# Ollama


def test_ollamas_models_are_used_in_place(home: Path) -> None:
    root = home / ".ollama/models"
    ollama_model(
        root,
        "registry.ollama.ai/library/llama3.2/1b",
        ("model", GGUF),
        ("template", b"{{ .Prompt }}"),
        ("system", b"Be kind."),
        ("params", b'{"stop":["<|eot|>"],"temperature":0.6,"num_gpu":1}'),
        ("messages", b'[{"role":"user","content":"hi"}]'),
        ("license", b"L1"),
        ("license", b"L2"),
        ("draft", b"guesses"),
    )
    before = frozen(root)
    for folder in (root, root / "blobs", root / "manifests"):
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    for name in ("llama3.2:1b", "ollama:llama3.2:1b", "Llama3.2:1B"):
        files = Store().resolve(name)
        assert files.path == root / "blobs" / f"sha256-{hex_of(GGUF)}"
        assert (files.name, files.template, files.system) == ("llama3.2:1b", "{{ .Prompt }}", "Be kind.")
        assert files.parameters == {"stop": ["<|eot|>"], "temperature": 0.6}
        assert files.messages == [{"role": "user", "content": "hi"}]
        assert files.licenses == ["L1", "L2"]
        assert files.source == f"Ollama's store: {root}"
    assert frozen(root) == before
    assert not Store().root.exists()
    for folder in (root, root / "blobs", root / "manifests"):
        folder.chmod(0o755)


def test_ollama_models_variable_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    ollama_model(home / ".ollama/models", "registry.ollama.ai/library/a/latest", ("model", GGUF))
    ollama_model(tmp_path / "elsewhere", "registry.ollama.ai/me/b/latest", ("model", GGUF))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "elsewhere"))
    assert list(foreign.names()) == ["me/b:latest"]
    with pytest.raises(NotFoundError):
        Store().resolve("a")


def test_a_new_model_on_top_of_ollamas_links_its_weights(home: Path) -> None:
    root = home / ".ollama/models"
    ollama_model(root, "registry.ollama.ai/library/a/latest", ("model", GGUF), ("system", b"old"), ("license", b"MIT"))
    before = frozen(root)
    store = Store()
    files = store.create("mine", "FROM a\nSYSTEM new", Path())
    assert files.path == root / "blobs" / f"sha256-{hex_of(GGUF)}"
    assert (files.system, files.licenses) == ("new", ["MIT"])
    store.copy("a", "copied")
    assert store.resolve("copied").system == "old"
    assert f"sha256-{hex_of(GGUF)}" not in {path.name for path in (store.root / "blobs").iterdir()}
    assert frozen(root) == before
    with pytest.raises(NotFoundError, match="ollama rm a"):
        store.remove("a")


def test_what_of_ollamas_cannot_be_used_is_named(home: Path) -> None:
    root = home / ".ollama/models"
    ollama_model(root, "registry.ollama.ai/library/vision/latest", ("model", GGUF), ("projector", GGUF))
    with pytest.raises(StoreError, match="projector"):
        Store().resolve("vision")


def test_attacks_in_ollamas_store(home: Path, tmp_path: Path) -> None:
    root, secret = home / ".ollama/models", write(tmp_path / "secret", GGUF + b"secret")
    library = "registry.ollama.ai/library"
    ollama_model(root, f"{library}/a/latest", ("model", GGUF))
    evil = {"mediaType": OLLAMA + "model", "digest": f"sha256:{'../' * 20}etc/passwd", "size": 1}
    ollama_model(root, f"{library}/traversal/latest", layers=[evil])
    notes = {"tokenmill.path": str(secret), "tokenmill.mtime": str(secret.stat().st_mtime_ns)}
    linked = {"mediaType": OLLAMA + "model", "digest": f"sha256:{'0' * 64}", "size": secret.stat().st_size}
    ollama_model(root, f"{library}/linked/latest", layers=[{**linked, "annotations": notes}])
    file = {"mediaType": "application/vnd.tokenmill.file", "digest": f"sha256:{hex_of(GGUF)}", "size": len(GGUF)}
    ollama_model(
        root, f"{library}/files/latest", layers=[{**file, "annotations": {"org.opencontainers.image.title": "x"}}]
    )
    write(root / "manifests" / library / "huge/latest", b" " * (5 << 20))
    for name, error in [
        ("traversal", FormatError),
        ("linked", FormatError),
        ("files", FormatError),
        ("huge", FormatError),
    ]:
        with pytest.raises(error):
            Store().resolve(name)
    blob = root / "blobs" / f"sha256-{hex_of(GGUF)}"
    blob.unlink()
    blob.symlink_to(secret)
    with pytest.raises(StoreError, match="leads out of the store"):
        Store().resolve("a")
    assert not (root / "views").exists()


# Hugging Face


INDEX = b'{"weight_map": {"a": "m-2.safetensors"}}'
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"[]",
    "README.md": b"#",
    "pytorch_model.bin": b"pickle",
}


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", None])
def test_the_hubs_cache_is_used_in_place(
    variable: str | None, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache" if variable else home / ".cache/huggingface/hub"
    if variable:
        given = {"HF_HUB_CACHE": cache, "HF_HOME": cache, "XDG_CACHE_HOME": cache}[variable]
        monkeypatch.setenv(variable, str(given))
        cache = {"HF_HUB_CACHE": cache, "HF_HOME": cache / "hub", "XDG_CACHE_HOME": cache / "huggingface/hub"}[variable]
    folder = hub_model(cache, "ORG/Model-1.5B", FILES)
    before = frozen(cache)
    for name in ("hf:ORG/Model-1.5B", "ORG/Model-1.5B", f"hf:ORG/Model-1.5B@{COMMIT}", "hf:ORG/Model-1.5B@main"):
        files = Store().resolve(name)
        assert files.path == folder / "snapshots" / COMMIT
        assert files.size == len(b"{}weights[]")
        assert files.source == f"Hugging Face's cache, revision {COMMIT}"
    assert frozen(cache) == before
    assert list(foreign.names()) == ["hf:ORG/Model-1.5B"]


def test_gguf_files_in_the_cache(home: Path) -> None:
    cache = home / ".cache/huggingface/hub"
    names = [
        "M-Q4_K_M.gguf",
        "M-Q8_0.gguf",
        "mmproj-M.gguf",
        "deep/M-00001-of-00002.gguf",
        "deep/M-00002-of-00002.gguf",
    ]
    folder = hub_model(cache, "ORG/GGUF", {name: name.encode() for name in names}, ref="v1/x")
    for wanted, found in [
        ("", "M-Q4_K_M.gguf"),
        (":q8_0", "M-Q8_0.gguf"),
        (":M-Q8_0.gguf", "M-Q8_0.gguf"),
        (":deep/M-00001-of-00002.gguf", "deep/M-00001-of-00002.gguf"),
    ]:
        assert Store().resolve(f"hf:ORG/GGUF@v1/x{wanted}").path == folder / "snapshots" / COMMIT / found
    with pytest.raises(NotFoundError):
        Store().resolve("hf:ORG/GGUF@v1/x:Q2_K")
    with pytest.raises(NotFoundError):
        Store().resolve("hf:ORG/GGUF")  # there is no ref main


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": b"{}"},
        {"model.safetensors": b"x"},
        {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
        {"config.json": b"{}", "m-1.safetensors": b"x", "m.safetensors.index.json": INDEX},
        {"M-00001-of-00002.gguf": b"half"},
    ],
)  # fmt: skip
def test_an_incomplete_download_is_not_a_model(home: Path, files: dict[str, bytes]) -> None:
    hub_model(home / ".cache/huggingface/hub", "ORG/M", files)
    with pytest.raises(NotFoundError):
        Store().resolve("hf:ORG/M")


def test_a_download_under_way_is_not_a_model(home: Path) -> None:
    folder = hub_model(home / ".cache/huggingface/hub", "ORG/M", FILES)
    (folder / "blobs" / hex_of(b"weights")).unlink()
    with pytest.raises(NotFoundError):
        Store().resolve("hf:ORG/M")


def test_attacks_in_the_cache(home: Path, tmp_path: Path) -> None:
    cache = home / ".cache/huggingface/hub"
    folder = hub_model(cache, "ORG/M", FILES)
    link = folder / "snapshots" / COMMIT / "config.json"
    link.unlink()
    link.symlink_to(write(tmp_path / "secret.json", b"{}"))
    with pytest.raises(StoreError, match="leads out of"):
        Store().resolve("hf:ORG/M")
    for ref in (b"../../../x", b"\xff", b"", COMMIT.upper().encode(), COMMIT.encode() + b"/../.."):
        (folder / "refs/main").write_bytes(ref)
        with pytest.raises(NotFoundError):
            Store().resolve("hf:ORG/M")
    hub_model(
        cache, "ORG/N", {"config.json": b"{}", "m.safetensors": b"", "m.safetensors.index.json": b'{"weight_map": 3}'}
    )
    with pytest.raises(StoreError, match="not an index of shards"):
        Store().resolve("hf:ORG/N")


def test_a_new_model_on_top_of_the_cache(home: Path) -> None:
    folder = hub_model(home / ".cache/huggingface/hub", "ORG/M", FILES)
    files = Store().create("mine", "FROM ORG/M\nSYSTEM hi", Path())
    assert files.path.parent.parent == Store().root / "views"
    assert sorted(path.name for path in files.path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (files.path / "config.json").readlink() == folder / "snapshots" / COMMIT / "config.json"


def test_lm_studio(home: Path) -> None:
    path = write(home / ".lmstudio/models/ORG/M-GGUF/M-Q4_K_M.gguf")
    for name in ("hf:ORG/M-GGUF", "ORG/M-GGUF"):
        files = Store().resolve(name)
        assert (files.path, files.source) == (path, f"LM Studio: {home / '.lmstudio/models'}")
    assert Store().resolve("hf:ORG/M-GGUF:Q4_K_M").path == path
    with pytest.raises(NotFoundError):
        Store().resolve("hf:ORG/M-GGUF@v1")
