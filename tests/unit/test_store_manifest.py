"""Manifests: Ollama's are read, ours are read back, hostile ones are refused with the place of the problem."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.core.errors import FormatError
from tokenmill.store import manifest as m
from tokenmill.store.manifest import Layer, Manifest, parse_manifest

DIGEST = "sha256:" + "ab" * 32


def descriptor(**changes: Any) -> dict[str, Any]:
    return {"mediaType": m.MODEL, "digest": DIGEST, "size": 5, **changes}


def manifest(**changes: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "config": descriptor(), "layers": [descriptor()], **changes}).encode()


def test_ollamas_manifest_is_read() -> None:
    # as Ollama writes it: layers may say where they were copied from
    data = manifest(mediaType=m.MANIFEST, layers=[descriptor(**{"from": "/root/x"}), descriptor(mediaType=m.LICENSE)])
    read = parse_manifest(data, "x")
    assert [layer.media_type for layer in read.layers] == [m.MODEL, m.LICENSE]
    assert read.size == 15
    assert read.unsupported() == []


texts = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), max_size=30)
notes = st.dictionaries(texts, texts, max_size=3)
digests = st.binary(min_size=32, max_size=32).map(lambda data: f"sha256:{data.hex()}")
layers = st.builds(Layer, st.sampled_from([m.MODEL, m.SYSTEM, "text/x"]), digests, st.integers(0, 1 << 50), notes)


@given(st.builds(Manifest, layers, st.lists(layers, max_size=5).map(tuple), notes))
def test_what_is_written_is_read_back(written: Manifest) -> None:
    assert parse_manifest(written.to_bytes(), "x") == written


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"", ""),
        (b"not json", ""),
        (b"\xff\xfe", ""),
        (b"[]", "manifest"),
        (b"[" * 100_000, ""),
        (b'{"schemaVersion": 2, "schemaVersion": 2}', ""),
        (manifest(schemaVersion=1), "schemaVersion"),
        (manifest(schemaVersion=True), "schemaVersion"),
        (manifest(layers={}), "layers"),
        (manifest(layers=[descriptor()] * 10_001), "layers"),
        (manifest(layers=[3]), r"layers\[0\]"),
        (manifest(config=None), "config"),
        (manifest(config=descriptor(size=-1)), "config.size"),
        (manifest(config=descriptor(size=True)), "config.size"),
        (manifest(config=descriptor(size=1.5)), "config.size"),
        (manifest(config=descriptor(size="5")), "config.size"),
        (manifest(config=descriptor(size=1 << 60)), "config.size"),
        (manifest(layers=[descriptor(digest="sha256:../../../../etc/passwd")]), r"layers\[0\]"),
        (manifest(layers=[descriptor(digest="sha256-" + "ab" * 32)]), r"layers\[0\]"),
        (manifest(layers=[descriptor(digest=None)]), r"layers\[0\].digest"),
        (manifest(layers=[descriptor(mediaType="x\x1b[2J")]), r"layers\[0\].mediaType"),
        (manifest(layers=[descriptor(mediaType=m.FILE)]), r"layers\[0\]"),
        (manifest(layers=[descriptor(mediaType=m.FILE, annotations={m.TITLE: "../../x"})]), r"layers\[0\]"),
        (manifest(layers=[descriptor(mediaType=m.FILE, annotations={m.TITLE: "/etc/passwd"})]), r"layers\[0\]"),
        (manifest(layers=[descriptor(annotations=[1])]), r"layers\[0\].annotations"),
        (manifest(layers=[descriptor(annotations={"a": 1})]), r"layers\[0\].annotations.a"),
        (manifest(annotations={"a": "x" * 5000}), "annotations.a"),
        (b" " * (m.MAX_MANIFEST_BYTES + 1), ""),
    ],
)
def test_hostile_manifests_are_refused(data: bytes, place: str) -> None:
    with pytest.raises(FormatError, match=f"^/store/x: {place}"):
        parse_manifest(data, "/store/x")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["schemaVersion", "config", "layers", "digest", "size", "mediaType", "annotations"]),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_any_json_is_a_manifest_or_a_format_error(plain: Any) -> None:
    with contextlib.suppress(FormatError):
        parse_manifest(json.dumps(plain).encode(), "x")


def test_what_cannot_be_used_is_named() -> None:
    kinds = ["application/vnd.ollama.image." + kind for kind in ("projector", "tensor", "draft", "surprise")]
    reasons = Manifest(Layer(m.CONFIG, DIGEST, 1), tuple(Layer(kind, DIGEST, 1) for kind in kinds)).unsupported()
    assert [reason.split()[0].rsplit(".")[-1] for reason in reasons] == ["projector", "tensor", "surprise"]
