"""Shapes out of headers: what a server is asked for is counted, and what it sends is not believed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny
from fakes.server import Served, Server
from tokenmill.core.errors import ConfigError, FormatError, NetworkError, NotFoundError
from tokenmill.models import read_config
from tokenmill.nn import cost
from tokenmill.plan import catalog, headers, shape


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as running:
        monkeypatch.setenv("TOKENMILL_TRUSTED_HOSTS", running.host)
        yield running


def asked_for(server: Server) -> list[tuple[int, int]]:
    """The ranges, as (first, last) byte."""
    return [
        (int(first), int(last))
        for seen in server.seen
        if "range" in seen.headers
        for first, last in [seen.headers["range"].removeprefix("bytes=").split("-")]
    ]


def test_a_gguf_header_is_read_here_and_far_away_alike(default_gguf: Path, server: Server) -> None:
    here = headers.local_shape(default_gguf)
    server.files["/m.gguf"] = Served(default_gguf.read_bytes())
    there, fetched = headers.find_shape(f"{server.url}/m.gguf")
    assert there == here
    # 1 MiB, then 1 and 2 more: the vocabulary and its merges take 1.8 MB; of 98 MB
    assert fetched is not None
    assert asked_for(server) == [(0, (1 << 20) - 1), (1 << 20, (2 << 20) - 1)]
    assert (fetched.requests, fetched.bytes) == (2, 2 << 20)
    assert fetched.of == default_gguf.stat().st_size == here.file_bytes


def test_a_gguf_header_says_what_the_catalog_says(default_gguf: Path) -> None:
    """The default model's file against its entry: independent sources of every dimension."""
    found, known = headers.local_shape(default_gguf), shape.from_catalog(catalog.models().find("smollm2:135m"))
    for figure in ("parameters", "table", "hidden", "layers", "heads", "kv_heads", "query", "key", "mlp", "vocab",
                   "context", "full_values", "windowed_values", "adapted"):  # fmt: skip
        assert getattr(found, figure) == getattr(known, figure), figure
    assert found.stored_bytes == 96_576_768
    assert found.stored_as == "Q4_1"


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral", "qwen3_moe", "gpt2"])
def test_a_safetensors_header_is_read_here_and_far_away_alike(name: str, tmp_path: Path, server: Server) -> None:
    folder = tiny.write(tiny.FAMILIES[name], tmp_path)
    for path in folder.iterdir():
        server.files[f"/{path.name}"] = Served(path.read_bytes())
    file = next(folder.glob("*.safetensors"))
    here = headers.local_shape(file)
    there, fetched = headers.find_shape(f"{server.url}/{file.name}?download=true")
    assert fetched is not None
    assert there.stored == here.stored == headers.local_shape(folder).stored
    assert [seen.path for seen in server.seen] == ["/config.json", f"/{file.name}"]
    _, config = read_config(tiny.FAMILIES[name], name)
    assert there.parameters == cost.parameters(config)
    assert there.stored_bytes == 4 * cost.parameters(config)
    assert there.full_values + there.windowed_values == cost.kv_bytes(config, 1, 1)
    length = 100
    assert there.full_values * length + there.windowed_values * min(length, there.window) == cost.kv_bytes(
        config, length, 1
    )


def test_weights_are_not_downloaded(tmp_path: Path, server: Server) -> None:
    """A header of 100 KB before 30 MB of weights costs one range of a megabyte."""
    weight = {"dtype": "F32", "shape": [7_500_000], "data_offsets": [0, 30_000_000]}
    header = {"__metadata__": {"x": "y" * 100_000}, "w": weight}
    text = json.dumps(header).encode()
    server.files["/model.safetensors"] = Served(len(text).to_bytes(8, "little") + text + bytes(30_000_000))
    server.files["/config.json"] = Served(json.dumps(tiny.FAMILIES["llama"]).encode())
    _, fetched = headers.find_shape(f"{server.url}/model.safetensors")
    assert fetched is not None
    assert asked_for(server) == [(0, (1 << 20) - 1)]
    assert fetched.bytes < 1.1 * (1 << 20) < fetched.of


def test_a_server_without_ranges_is_not_read_to_its_end(server: Server) -> None:
    server.files["/m.gguf"] = Served(b"GGUF" + bytes(1000), ranges=False)
    with pytest.raises(NetworkError, match="gives no ranges of files; pull the model"):
        headers.find_shape(f"{server.url}/m.gguf")


@pytest.mark.parametrize(
    "data",
    [b"GGUF" + bytes(3 << 20), b"\xff" * (1 << 20), b"GGUF\x03\0\0\0" + b"\xff" * 3000, b"x"],
    ids=["zeros", "huge header", "huge counts", "one byte"],
)
@pytest.mark.parametrize("name", ["m.gguf", "model.safetensors"])
def test_a_hostile_file_is_refused_and_read_no_further_than_it_is_long(data: bytes, name: str, server: Server) -> None:
    server.files[f"/{name}"] = Served(data)
    server.files["/config.json"] = Served(json.dumps(tiny.FAMILIES["llama"]).encode())
    with pytest.raises((FormatError, ConfigError)):
        headers.find_shape(f"{server.url}/{name}")
    assert sum(last - first + 1 for first, last in asked_for(server)) <= max(len(data), headers.FIRST_RANGE)


def test_unknown_names_get_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path))
    with pytest.raises(NotFoundError, match=r"did you mean 'llama-3\.1-8b'"):
        headers.find_shape("lama-3.1-8b")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(FormatError, match=r"neither a config\.json, a GGUF"):
        headers.find_shape(str(tmp_path / "notes.txt"))
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(FormatError, match=r"put its config\.json beside it"):
        headers.find_shape(str(tmp_path / "model.safetensors"))


def test_a_configuration_of_a_family_we_do_not_have(tmp_path: Path) -> None:
    """By common keys: DeepSeek-V3's own configuration gives its 671 billion and a cache of 70 KB a token."""
    config = {
        "model_type": "deepseek_v9", "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128,
        "num_key_value_heads": 128, "intermediate_size": 18432, "vocab_size": 129280, "first_k_dense_replace": 3,
        "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "n_shared_experts": 1,
        "max_position_embeddings": 163840,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    found, _ = headers.find_shape(str(tmp_path / "config.json"))
    assert found.parameters == pytest.approx(671.03e9, rel=1e-3)
    assert found.active_parameters == pytest.approx(37.5e9, rel=0.01)
    assert found.full_values * 2 == 70_272
    del config["num_hidden_layers"], config["vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"num_hidden_layers or n_layer or num_layers is missing[\s\S]*vocab_size"):
        headers.find_shape(str(tmp_path / "config.json"))
