"""Pulling from and pushing to a hub that speaks the real one's protocol."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from fakes.hub import Hub, Repo
from fakes.server import Served, Server, cut, slow, status
from tokenmill.core.errors import DigestError, FormatError, NetworkError, NotFoundError, StoreError, UsageError
from tokenmill.store import Store
from tokenmill.store import manifest as m
from tokenmill.store.blobs import BlobStore
from tokenmill.store.manifest import Layer, Manifest
from tokenmill.store.names import parse_reference
from tokenmill.store.sources import RemoteFile, fetch, plan, upload
from tokenmill.store.transport import Client

GGUF = b"GGUF" + bytes(range(256)) * 2000
FOLDER = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "model-00001-of-00002.safetensors": b"a" * 3000,
    "model-00002-of-00002.safetensors": b"b" * 3000,
    "model.safetensors.index.json": b"{}",
    "pytorch_model.bin": b"\x80\x04pickle",
    "modeling_custom.py": b"raise SystemExit",
    "onnx/model.onnx": b"o",
    "original/consolidated.safetensors": b"c",
    "README.md": b"# hello",
    "../escape.json": b"{}",
}
QUANTS = {f"m-{kind}.gguf": GGUF + kind.encode() for kind in ("Q4_K_M", "Q8_0", "f16")}
SPLIT = {f"big-Q4_0-0000{i}-of-00003.gguf": GGUF + bytes([i]) for i in (1, 2, 3)}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    repos = {
        "org/folder": Repo(FOLDER, revisions=("main", "v1.0")),
        "org/quants": Repo(QUANTS | {"README.md": b""}, commit="c" * 40),
        "org/split": Repo(SPLIT),
        "org/two": Repo({"a-Q2_K.gguf": GGUF, "b-Q3_K.gguf": GGUF}),
        "org/pickle": Repo({"config.json": b"{}", "pytorch_model.bin": b"x"}),
        "org/secret": Repo(FOLDER, token="hf_right"),
        "org/gated": Repo(QUANTS, gated=True),
        "org/liar": Repo({"m.gguf": GGUF}, lies={"m.gguf": "0" * 64}),
    }
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TOKENMILL_TRUSTED_HOSTS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with Server() as cdn, Hub(repos, cdn) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("TOKENMILL_TRUSTED_HOSTS", cdn.host)
        yield running


@pytest.fixture
def client(hub):
    with Client(sleep=lambda seconds: None, timeout_s=5) as made:
        yield made


def names(text: str, client: Client) -> list[str]:
    return [file.name for file in plan(parse_reference(text), client=client).files]


def test_a_repository_of_original_weights(hub, client, tmp_path):
    blobs, said = BlobStore(tmp_path), []
    with plan(parse_reference("hf:org/folder"), progress=lambda *a: said.append(a), client=client) as made:
        assert made.revision == "a" * 40
        for file in made.files:
            digest, size = fetch(file, blobs, lambda *a: said.append(a), client=client)
            assert blobs.path(digest).read_bytes() == FOLDER[file.name]
            assert size == len(FOLDER[file.name])
            assert file.media_type == m.FILE
    assert [file.name for file in made.files] == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    statuses = [entry[0] for entry in said]
    assert statuses[0] == "pulling manifest"
    assert f"pulling {hashlib.sha256(b'a' * 3000).hexdigest()[:12]}" in statuses
    assert "verifying sha256 digest" in statuses
    assert list(tmp_path.rglob("partial-*")) == []


@pytest.mark.parametrize(("text", "expected"), [
    ("hf:org/quants", ["m-Q4_K_M.gguf"]),
    ("hf:org/quants:q8_0", ["m-Q8_0.gguf"]),
    ("hf:org/quants:m-f16.gguf", ["m-f16.gguf"]),
    ("hf:org/split", sorted(SPLIT)),
    ("hf:org/split:Q4_0", sorted(SPLIT)),
])  # fmt: skip
def test_choosing_among_gguf_files(client, text, expected):
    assert names(text, client) == expected


@pytest.mark.parametrize(("text", "said"), [
    ("hf:org/two", "name one after a colon: a-Q2_K.gguf, b-Q3_K.gguf"),
    ("hf:org/quants:Q5_K_M", "m-Q4_K_M.gguf"),
    ("hf:org/pickle", "pickled weights"),
    ("hf:org/none", "no such repository.*HF_TOKEN"),
    ("hf:org/folder@v9", "no such branch, tag or commit"),
])  # fmt: skip
def test_what_is_not_there_is_said(client, text, said):
    with pytest.raises(NotFoundError, match=said):
        plan(parse_reference(text), client=client)


def test_a_revision_is_pinned_to_its_commit(hub, client):
    made = plan(parse_reference("hf:org/folder@v1.0"), client=client)
    assert made.revision == "a" * 40
    assert all(f"/resolve/{'a' * 40}/" in file.url for file in made.files)
    assert hub.seen[0].path.endswith("/revision/v1.0")


def test_a_lone_gguf_is_a_model_layer(client):
    assert plan(parse_reference("hf:org/quants"), client=client).files[0].media_type == m.MODEL


def test_the_token_goes_to_the_hub_and_not_to_the_cdn(hub, client, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    made = plan(parse_reference("hf:org/secret"), client=client)
    assert "hf_right" not in repr(made)
    for file in made.files:
        fetch(file, BlobStore(tmp_path), client=client)
    assert {seen.headers.get("authorization") for seen in hub.seen} == {"Bearer hf_right"}
    assert len(hub.cdn.seen) == 2
    assert all("authorization" not in seen.headers for seen in hub.cdn.seen)


def test_a_private_repository_without_token_names_the_variable(client):
    with pytest.raises(NotFoundError, match="HF_TOKEN"):
        plan(parse_reference("hf:org/secret"), client=client)


def test_a_gated_file_names_what_to_do(client, tmp_path):
    made = plan(parse_reference("hf:org/gated"), client=client)
    with pytest.raises(NetworkError, match=r"403.*accept its terms.*HF_TOKEN"):
        fetch(made.files[0], BlobStore(tmp_path), client=client)


def test_a_gated_repository_names_what_to_do(hub, client):
    hub.fault("/api/models/org/quants", status(403, X_Error_Code="GatedRepo"))
    with pytest.raises(NetworkError, match=r"gated; accept its terms"):
        plan(parse_reference("hf:org/quants"), client=client)


def test_a_cut_download_is_continued_through_the_redirect(hub, client, tmp_path):
    file = plan(parse_reference("hf:org/quants"), client=client).files[0]
    hub.cdn.fault(f"/cdn/{file.sha256}", cut(100_000))
    fetch(file, BlobStore(tmp_path), client=client)
    assert hub.cdn.seen[1].headers["range"] == "bytes=100000-"


def test_a_wrong_digest_is_refused(client, tmp_path):
    file = plan(parse_reference("hf:org/liar"), client=client).files[0]
    with pytest.raises(DigestError):
        fetch(file, BlobStore(tmp_path), client=client)
    assert list((tmp_path / "blobs").iterdir()) == []


def test_a_small_file_is_held_to_its_git_object(hub, client, tmp_path):
    file = plan(parse_reference("hf:org/folder"), client=client).files[0]
    hub.repos["org/folder"].files = FOLDER | {"config.json": b'{"model_type": "evil!"}'}
    with pytest.raises(DigestError, match="git object"):
        fetch(file, BlobStore(tmp_path), client=client)
    assert list((tmp_path / "blobs").iterdir()) == []


def test_what_is_here_is_not_fetched_again(hub, client, tmp_path):
    file, blobs = plan(parse_reference("hf:org/quants"), client=client).files[0], BlobStore(tmp_path)
    first = fetch(file, blobs, client=client)
    asked = len(hub.seen)
    assert fetch(file, blobs, client=client) == first
    assert len(hub.seen) == asked


def test_two_that_want_the_same_fetch_it_once(hub, client, tmp_path):
    file, blobs, said = plan(parse_reference("hf:org/quants"), client=client).files[0], BlobStore(tmp_path), []
    hub.cdn.fault(f"/cdn/{file.sha256}", slow(0.3))
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda _: fetch(file, blobs, lambda *a: said.append(a[0])), range(4)))
    assert set(got) == {(file.digest, file.size)}
    assert len(hub.cdn.seen) == 1
    assert any(status.startswith("waiting for another process") for status in said)


def test_a_busy_hub_is_asked_again(hub, client):
    hub.fault("/api/models/org/quants", status(429, Retry_After="1"), status(503))
    assert names("hf:org/quants", client) == ["m-Q4_K_M.gguf"]


def test_an_unreachable_hub_is_a_network_error(hub, client, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NetworkError, match=r"127\.0\.0\.1:9"):
        plan(parse_reference("hf:org/quants"), client=client)


def test_an_answer_that_is_no_json_is_a_network_error(hub, client):
    hub.fault("/api/models/org/quants", status(200, b"<html>"))
    with pytest.raises(NetworkError, match="not understood"):
        plan(parse_reference("hf:org/quants"), client=client)


def test_file_names_of_a_stranger_do_not_leave_the_model(hub, client):
    hub.repos["org/folder"].files = {"config.json": b"{}", "model.safetensors": b"x", "..model.model": b"x"}
    with pytest.raises(StoreError, match="not an acceptable file name"):
        plan(parse_reference("hf:org/folder"), client=client)
    with pytest.raises(StoreError):
        RemoteFile("../x", "https://a/b", None, None, m.FILE)


def _layers(tmp_path, contents: list[tuple[str, bytes, str]]) -> tuple[Manifest, BlobStore]:
    blobs = BlobStore(tmp_path)
    layers = tuple(
        Layer(kind, blobs.add_bytes(data), len(data), {m.TITLE: title} if title else {})
        for kind, data, title in contents
    )
    return Manifest(Layer(m.CONFIG, blobs.add_bytes(b"{}"), 2), layers), blobs


def test_push_makes_one_commit(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    manifest, blobs = _layers(tmp_path, [
        (m.MODEL, GGUF, ""), (m.TEMPLATE, b"{{ .Prompt }}", ""), (m.PARAMS, b'{"temperature": 0}', ""),
        (m.LICENSE, b"Apache", ""), (m.LICENSE, b"More", ""),
    ])  # fmt: skip
    said: list[str] = []
    destination = parse_reference("hf:me/mine@dev")
    upload(destination, manifest, lambda layer: blobs.path(layer.digest), progress=lambda s, *a: said.append(s))
    assert hub.committed() == {
        "mine.gguf": GGUF, "template": b"{{ .Prompt }}", "params": b'{"temperature": 0}',
        "LICENSE": b"Apache", "LICENSE.1": b"More",
    }  # fmt: skip
    assert hub.created[0]["name"] == "mine"
    assert any(seen.path == "/api/models/me/mine/commit/dev" for seen in hub.seen)
    assert said[0] == "creating me/mine"


def test_push_of_a_folder_keeps_its_file_names(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    files = {"config.json": json.dumps({"model_type": "llama"}).encode(), "model.safetensors": b"s" * 500}
    manifest, blobs = _layers(tmp_path, [(m.FILE, data, name) for name, data in files.items()])
    upload(parse_reference("hf:me/mine"), manifest, lambda layer: blobs.path(layer.digest))
    assert hub.committed() == files


def test_a_folder_is_pushed_whole_and_goes_on_where_it_broke_off(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    files = {"README.md": b"# card", "sub/c.jinja": b"{{ x }}"} | {f"{n}.safetensors": b"a" * n for n in (500, 600)}
    for name, data in {**files, ".hidden": b"no", ".cache/x": b"no"}.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(data)
    store = Store(tmp_path / "models")
    hub.most_lfs = 1
    with pytest.raises((NetworkError, NotFoundError)):
        store.push(str(tmp_path / "model"), "hf:me/mine")
    assert not hub.commits, "nothing is in the repository before all of it is"
    hub.most_lfs = None
    sent = len([seen for seen in hub.seen if seen.path.startswith("/lfs/") and seen.method == "PUT"])
    store.push(str(tmp_path / "model"), "hf:me/mine")
    assert hub.committed() == files
    again = len([seen for seen in hub.seen if seen.path.startswith("/lfs/") and seen.method == "PUT"]) - sent
    assert again == 1, "what had arrived is not sent again"
    for destination, why in ((None, "say where"), ("ollama:me/mine", "tokenmill create")):
        with pytest.raises(UsageError, match=why):
            store.push(str(tmp_path / "model"), destination)


def test_push_without_the_right_to(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    manifest, blobs = _layers(tmp_path, [(m.MODEL, GGUF, "")])
    with pytest.raises((NetworkError, NotFoundError), match="HF_TOKEN"):
        upload(parse_reference("hf:me/mine"), manifest, lambda layer: blobs.path(layer.digest))


@pytest.mark.parametrize(("layer", "destination", "said"), [
    ((m.MESSAGES, b"[]", ""), "hf:me/mine", "'messages'"),
    ((m.ADAPTER, b"x", ""), "hf:me/mine", "merge it into the model"),
    ((m.MODEL, GGUF, ""), "hf:me/mine:Q4_0", "ends in .gguf"),
    ((m.FILE, b"x", "a.json"), "https://a.example/b.gguf", "cannot be pushed to"),
    ((m.FILE, b"x", "a.json"), "pypi:a==1", "cannot be pushed to"),
])  # fmt: skip
def test_push_refuses_what_has_no_place(hub, tmp_path, layer, destination, said):
    manifest, blobs = _layers(tmp_path, [layer])
    with pytest.raises(UsageError, match=said):
        upload(parse_reference(destination), manifest, lambda layer: blobs.path(layer.digest))
    assert hub.seen == []


def test_push_refuses_two_files_of_one_name(hub, tmp_path):
    manifest, blobs = _layers(tmp_path, [(m.FILE, b"x", "template"), (m.TEMPLATE, b"y", "")])
    with pytest.raises(UsageError, match="two of the model's files"):
        upload(parse_reference("hf:me/mine"), manifest, lambda layer: blobs.path(layer.digest))


def test_an_address_of_a_gguf(hub, client, tmp_path):
    hub.cdn.files["/dir/m.gguf"] = Served(GGUF)
    made = plan(parse_reference(f"{hub.cdn.url}/dir/m.gguf?download=1"), client=client)
    digest, _ = fetch(made.files[0], BlobStore(tmp_path), client=client)
    assert digest == f"sha256:{hashlib.sha256(GGUF).hexdigest()}"
    with pytest.raises(StoreError, match="not an acceptable file name"):
        plan(parse_reference(f"{hub.cdn.url}/dir/my%20model.gguf"), client=client)


def test_a_web_page_is_no_model(hub, client, tmp_path):
    hub.cdn.fault("/m.gguf", status(200, b"<!DOCTYPE html><title>Sign in</title>"))
    made = plan(parse_reference(f"{hub.cdn.url}/m.gguf"), client=client)
    with pytest.raises(FormatError, match="web page"):
        fetch(made.files[0], BlobStore(tmp_path), client=client)
    assert list((tmp_path / "blobs").iterdir()) == []


@pytest.mark.parametrize("text", ["https://a.example/model.safetensors", "https://a.example/x.zip"])
def test_an_address_of_anything_else_is_refused(client, text):
    with pytest.raises(UsageError, match=r"only a \.gguf"):
        plan(parse_reference(text), client=client)


def test_an_address_on_this_machine_is_refused_unless_trusted(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("TOKENMILL_TRUSTED_HOSTS")
    made = plan(parse_reference(f"{hub.cdn.url}/m.gguf"))
    with pytest.raises(UsageError, match="TOKENMILL_TRUSTED_HOSTS"):
        fetch(made.files[0], BlobStore(tmp_path))
    assert hub.cdn.seen == []


def test_a_path_is_no_source(tmp_path):
    with pytest.raises(UsageError, match="file on this machine"):
        plan(parse_reference(str(tmp_path)))
