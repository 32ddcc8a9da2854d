"""Pulling from and pushing to a registry that speaks Ollama's protocol."""

from __future__ import annotations

import json

import pytest

from fakes.registry import Registry, digest_of
from fakes.server import Server, cut, endless, redirect, status
from tokenmill.core.errors import DigestError, FormatError, NetworkError, NotFoundError, StoreError, UsageError
from tokenmill.store import manifest as m
from tokenmill.store.blobs import BlobStore
from tokenmill.store.manifest import Layer, Manifest
from tokenmill.store.names import parse_reference
from tokenmill.store.sources import fetch, plan, upload
from tokenmill.store.sources import ollama as ollama_module
from tokenmill.store.transport import Client, Trust

GGUF = b"GGUF" + bytes(range(256)) * 2000
LAYERS = [(m.MODEL, GGUF), (m.TEMPLATE, b"{{ .Prompt }}"), (m.PARAMS, b'{"stop":["x"]}'), (m.LICENSE, b"MIT")]
MANIFEST_PATH = "/v2/library/tiny/manifests/latest"


@pytest.fixture
def cdn():
    with Server() as running:
        yield running


def _trusting(*servers: Server) -> Client:
    trust = Trust(frozenset(("127.0.0.1", server.port) for server in servers))
    return Client(trust, sleep=lambda seconds: None, timeout_s=5)


@pytest.fixture(params=["open", "guarded"])
def registry(request, cdn, monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Registry(cdn, guarded=request.param == "guarded") as running:
        monkeypatch.setenv("TOKENMILL_OLLAMA_REGISTRY", running.url)
        running.add_model("library/tiny:latest", LAYERS)
        yield running


@pytest.fixture
def client(registry, cdn):
    with _trusting(registry, cdn) as made:
        yield made


def test_pull(registry, client, cdn, tmp_path):
    blobs, said = BlobStore(tmp_path), []
    made = plan(parse_reference("tiny"), progress=lambda *a: said.append(a), client=client)
    assert made.manifest == registry.manifests["library/tiny:latest"]
    assert [file.media_type for file in made.files] == [m.CONFIG, m.MODEL, m.TEMPLATE, m.PARAMS, m.LICENSE]
    for file in made.files:
        digest, _ = fetch(file, blobs, lambda *a: said.append(a), client=client)
        assert blobs.path(digest).read_bytes() == registry.blobs[digest]
    assert said[0] == ("pulling manifest",)
    assert (f"pulling {digest_of(GGUF)[7:19]}", digest_of(GGUF), len(GGUF), len(GGUF)) in said
    assert registry.seen[0].headers["accept"] == m.MANIFEST
    assert all("authorization" not in seen.headers for seen in cdn.seen)


def test_the_token_is_fetched_once_for_all_blobs(registry, client, tmp_path):
    for file in plan(parse_reference("ollama:tiny:latest"), client=client).files:
        fetch(file, BlobStore(tmp_path), client=client)
    assert len(registry.requests("/token")) == int(registry.guarded)


def test_an_expired_token_is_renewed(registry, client, tmp_path):
    made = plan(parse_reference("tiny"), client=client)
    registry.valid_tokens.clear()
    fetch(made.files[1], BlobStore(tmp_path), client=client)


@pytest.mark.parametrize("name", ["tiny:none", "other", "me/other:x"])
def test_what_the_registry_does_not_have(client, name):
    with pytest.raises(NotFoundError, match="has no such model or tag"):
        plan(parse_reference(name), client=client)


def test_a_cut_blob_is_continued(registry, client, cdn, tmp_path):
    cdn.fault(f"/r2/{digest_of(GGUF)}", cut(200_000))
    made = plan(parse_reference("tiny"), client=client)
    fetch(made.files[1], BlobStore(tmp_path), client=client)
    assert cdn.seen[1].headers["range"] == "bytes=200000-"


def test_a_blob_that_is_not_what_the_manifest_says(registry, client, cdn, tmp_path):
    cdn.files[f"/r2/{digest_of(GGUF)}"].data = GGUF[:-1] + b"!"
    made = plan(parse_reference("tiny"), client=client)
    with pytest.raises(DigestError):
        fetch(made.files[1], BlobStore(tmp_path), client=client)
    assert list((tmp_path / "blobs").iterdir()) == []


def test_a_blob_of_another_length_is_refused(registry, client, cdn, tmp_path):
    cdn.files[f"/r2/{digest_of(GGUF)}"].data = GGUF * 2
    made = plan(parse_reference("tiny"), client=client)
    with pytest.raises(DigestError, match="offers"):
        fetch(made.files[1], BlobStore(tmp_path), client=client)


@pytest.mark.parametrize("change", [
    {"digest": "sha256:../../../etc/passwd"}, {"digest": "sha256:" + "G" * 64}, {"size": -1}, {"size": 1e300},
    {"mediaType": 7},
])  # fmt: skip
def test_a_planted_manifest_is_refused(registry, client, change):
    plain = json.loads(registry.manifests["library/tiny:latest"])
    plain["layers"][0] |= change
    registry.manifests["library/tiny:latest"] = json.dumps(plain).encode()
    with pytest.raises(FormatError):
        plan(parse_reference("tiny"), client=client)


def test_an_endless_manifest_is_refused(registry, client):
    registry.fault(MANIFEST_PATH, endless())
    with pytest.raises(NetworkError, match="longer than"):
        plan(parse_reference("tiny"), client=client)


def test_a_redirect_into_the_private_network_is_refused(registry, tmp_path):
    with _trusting(registry) as client:  # the cdn's port is not trusted here
        made = plan(parse_reference("tiny"), client=client)
        with pytest.raises(UsageError, match="TOKENMILL_TRUSTED_HOSTS"):
            fetch(made.files[1], BlobStore(tmp_path), client=client)


def test_a_token_realm_in_the_private_network_is_refused(registry, client):
    challenge = 'Bearer realm="http://169.254.169.254/latest/meta-data",service="x",scope="y"'
    registry.fault(MANIFEST_PATH, status(401, WWW_Authenticate=challenge))
    with pytest.raises(UsageError, match=r"169\.254\.169\.254"):
        plan(parse_reference("tiny"), client=client)


@pytest.mark.parametrize("challenge", ["", "Basic realm=x", 'Bearer realm="Authentication required"', "Bearer", "'"])
def test_a_challenge_without_a_realm_is_a_refusal(registry, client, challenge):
    registry.fault(MANIFEST_PATH, status(401, WWW_Authenticate=challenge))
    with pytest.raises(NetworkError, match=r"401.*netrc"):
        plan(parse_reference("tiny"), client=client)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"token": 5}', b'{"token": "a\\r\\nX: y"}', b"{" * 60000])
def test_a_broken_token_is_a_network_error(cdn, monkeypatch, body):
    with Registry(cdn, guarded=True) as registry, _trusting(registry) as client:
        monkeypatch.setenv("TOKENMILL_OLLAMA_REGISTRY", registry.url)
        registry.fault("/token", status(200, body))
        with pytest.raises(NetworkError, match="holds no token"):
            plan(parse_reference("tiny"), client=client)


def test_a_login_of_netrc_goes_to_its_own_host_only(cdn, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    with Registry(cdn, guarded=True, login="me:secret") as registry, _trusting(registry, cdn) as client:
        monkeypatch.setenv("TOKENMILL_OLLAMA_REGISTRY", registry.url)
        registry.add_model("library/tiny:latest", LAYERS)
        with pytest.raises(NetworkError, match="401"):
            plan(parse_reference("tiny"), client=client)
        netrc.write_text("machine elsewhere.example login me password secret\n")
        with pytest.raises(NetworkError, match="401"):
            plan(parse_reference("tiny"), client=client)
        netrc.write_text("machine 127.0.0.1 login me password secret\n")
        made = plan(parse_reference("tiny"), client=client)
        fetch(made.files[1], BlobStore(tmp_path), client=client)
        assert "c2VjcmV0" not in str([seen.headers for seen in cdn.seen])
        netrc.write_text("machine 127.0.0.1 login me nonsense")
        registry.valid_tokens.clear()
        with pytest.raises(StoreError, match="netrc"):
            plan(parse_reference("tiny"), client=client)


def _local_model(tmp_path, *, linked: bool = False) -> tuple[Manifest, BlobStore]:
    blobs = BlobStore(tmp_path)
    layers = [Layer(kind, blobs.add_bytes(data), len(data)) for kind, data in LAYERS]
    if linked:
        notes = {m.LINK_PATH: "/home/me/secret-place/m.gguf", m.LINK_MTIME: "1"}
        layers[0] = Layer(layers[0].media_type, layers[0].digest, layers[0].size, notes)
    config = Layer(m.CONFIG, blobs.add_bytes(b"{}"), 2)
    return Manifest(config, tuple(layers)), blobs


@pytest.mark.parametrize("chunk", [64 << 20, 100_000])
def test_push(registry, client, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(ollama_module, "_CHUNK", chunk)
    manifest, blobs = _local_model(tmp_path)
    registry.blobs.clear()
    said = []
    destination = parse_reference("me/mine:v1")
    upload(destination, manifest, lambda x: blobs.path(x.digest), progress=lambda *a: said.append(a), client=client)
    assert registry.manifests["me/mine:v1"] == manifest.to_bytes()
    assert registry.manifest_types == [m.MANIFEST]
    assert registry.blobs[digest_of(GGUF)] == GGUF
    assert (f"pushing {digest_of(GGUF)[7:19]}", digest_of(GGUF), len(GGUF), len(GGUF)) in said
    assert said[-2:] == [("pushing manifest",), ("success",)]
    assert len([seen for seen in registry.seen if seen.method == "PATCH" and seen.body]) == 5 + len(GGUF) // chunk


def test_push_sends_only_what_the_registry_lacks(registry, client, tmp_path):
    manifest, blobs = _local_model(tmp_path)
    registry.blobs.pop(manifest.layers[1].digest)
    upload(parse_reference("me/mine"), manifest, lambda x: blobs.path(x.digest), client=client)
    assert [len(seen.body) for seen in registry.seen if seen.method == "PATCH" and seen.body] == [13]


def test_push_does_not_tell_where_files_lie_on_this_machine(registry, client, tmp_path):
    manifest, blobs = _local_model(tmp_path, linked=True)
    upload(parse_reference("me/mine"), manifest, lambda x: blobs.path(x.digest), client=client)
    assert b"secret-place" not in registry.manifests["me/mine:latest"]


def test_push_goes_on_after_a_busy_answer(registry, client, tmp_path):
    manifest, blobs = _local_model(tmp_path)
    registry.blobs.clear()
    registry.fault("/v2/me/mine/blobs/uploads/s0", status(503), status(429))
    upload(parse_reference("me/mine"), manifest, lambda x: blobs.path(x.digest), client=client)
    assert registry.blobs[digest_of(GGUF)] == GGUF


def test_push_of_a_damaged_blob_is_refused_by_the_registry(registry, client, tmp_path):
    manifest, blobs = _local_model(tmp_path)
    registry.blobs.clear()
    blobs.path(digest_of(GGUF)).write_bytes(GGUF[:-1] + b"!")
    with pytest.raises(NetworkError, match="400"):
        upload(parse_reference("me/mine"), manifest, lambda x: blobs.path(x.digest), client=client)
    blobs.path(digest_of(GGUF)).write_bytes(GGUF[:-1])
    with pytest.raises(StoreError, match="bytes where the manifest says"):
        upload(parse_reference("me/mine"), manifest, lambda x: blobs.path(x.digest), client=client)
    assert "me/mine:latest" not in registry.manifests


def test_push_follows_no_redirect_into_the_private_network(registry, client, tmp_path):
    manifest, blobs = _local_model(tmp_path)
    registry.blobs.clear()
    registry.fault("/v2/me/mine/blobs/uploads/", status(202, Location="https://10.0.0.1/upload"))
    with pytest.raises(UsageError, match=r"10\.0\.0\.1"):
        upload(parse_reference("me/mine"), manifest, lambda x: blobs.path(x.digest), client=client)
    registry.fault("/v2/me/mine/blobs/uploads/", redirect("https://10.0.0.1/upload"))
    with pytest.raises(NetworkError, match="302"):
        upload(parse_reference("me/mine"), manifest, lambda x: blobs.path(x.digest), client=client)


def test_names_with_a_host_go_to_that_host(monkeypatch):
    monkeypatch.delenv("TOKENMILL_OLLAMA_REGISTRY", raising=False)
    urls = {
        "tiny": "https://registry.ollama.ai/v2/library/tiny",
        "me/tiny:x": "https://registry.ollama.ai/v2/me/tiny",
        "models.example/me/tiny": "https://models.example/v2/me/tiny",
        "localhost:5000/me/tiny": "http://localhost:5000/v2/me/tiny",
    }
    for text, url in urls.items():
        assert ollama_module.registry_url(parse_reference(text).name) == url
