"""Token shards: what is written, in which order, what a run reads from them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from tokenmill.config.recipe import DataConfig
from tokenmill.core.errors import ConfigError, FormatError, NotFoundError
from tokenmill.data.curate.step import Context, Document, Tally
from tokenmill.data.curate.tokenize import Tokenize, TokenizeOptions
from tokenmill.data.files import find_files
from tokenmill.data.loader import Loader
from tokenmill.data.prepare import load_splits
from tokenmill.data.sharding import Shardable, shards_of_texts, write_shards
from tokenmill.data.shards import open_shards, tokenizer_of
from tokenmill.text.tokenizer import Tokenizer
from tokenmill.text.train import TokenizerSpec, train_tokenizer

DOCUMENTS = [(f"a#{n}", f"document {n} says " + "the quick brown fox " * (1 + n % 7)) for n in range(300)]


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    spec = TokenizerSpec("byte-bpe", 320)
    return train_tokenizer(spec, lambda: [text for _, text in DOCUMENTS]).tokenizer


@pytest.fixture(scope="module")
def shards(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of some thousand tokens each."""
    folder = tmp_path_factory.mktemp("shards")
    shards_of_texts(DOCUMENTS, folder, tokenizer, seed=3, shard_tokens=2000, chunk_chars=5000)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def texts_in(folder: Path, tokenizer: Tokenizer) -> list[str]:
    files = open_shards([folder], tokenizer)
    return [
        tokenizer.decode(files.tokens[int(one["start"]) : int(one["start"] + one["length"])].tolist())
        for one in files.documents
    ]


# --- writing


def test_every_document_is_there_once_whole_between_begin_and_end(shards: Path, tokenizer: Tokenizer) -> None:
    index = json.loads((shards / "index.json").read_text())
    assert len(index["shards"]) == -(-index["tokens"] // 2000) > 3
    assert index["dtype"] == "<u2"
    assert sorted(texts_in(shards, tokenizer)) == sorted(text for _, text in DOCUMENTS)
    files = open_shards([shards], tokenizer)
    for one in files.documents:
        tokens = files.tokens[int(one["start"]) : int(one["start"] + one["length"])]
        assert (tokens[0], tokens[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert files.documents["ends"].all()
    assert (shards / "shard-00000.bin").stat().st_size == 2 * index["shards"][0]["tokens"]
    assert files.where(0).endswith("shard-00000.bin:1")


def test_the_order_follows_from_the_seed_and_not_from_how_the_work_was_spread(
    shards: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"shard_tokens": 2000}
    shards_of_texts(DOCUMENTS[::-1], tmp_path / "b", tokenizer, seed=3, chunk_chars=700, **options)
    assert contents(tmp_path / "b") == contents(shards)
    other = shards_of_texts(DOCUMENTS, tmp_path / "c", tokenizer, seed=4, **options)
    ours = json.loads((shards / "index.json").read_text())
    assert other["data"] == ours["data"]  # the same documents
    assert other["version"] != ours["version"]
    order = [int(text.split()[1]) for text in texts_in(shards, tokenizer)]
    assert abs(float(np.corrcoef(order, range(300))[0, 1])) < 0.2  # shuffled over all shards, not within one
    first = [int(text.split()[1]) for text in texts_in(shards, tokenizer)[:60]]
    assert min(first) < 60 < 240 < max(first)


def test_shards_that_were_there_are_replaced(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shards_of_texts(DOCUMENTS, tmp_path, tokenizer, shard_tokens=1000)
    index = shards_of_texts(DOCUMENTS[:3], tmp_path, tokenizer)
    assert {file.name for file in tmp_path.iterdir()} == {
        "index.json",
        "shard-00000.bin",
        "shard-00000.idx",
        "tokenizer",
    }
    assert index["documents"] == 3


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    backend = Backend(models.WordLevel({f"w{n}": n for n in range(66_000)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    index = shards_of_texts([("a", "w5 w65999 w7")], tmp_path, Tokenizer(backend, origin="test"))
    assert index["dtype"] == "<u4"
    assert np.fromfile(tmp_path / "shard-00000.bin", "<u4").tolist() == [5, 65999, 7]
    assert texts_in(tmp_path, tokenizer_of(tmp_path)) == ["w5 w65999 w7"]


def test_white_space_is_no_document_and_no_text_is_an_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    index = shards_of_texts([("a", "one"), ("b", " \n"), ("c", "")], tmp_path / "s", tokenizer)
    assert index["documents"] == 1
    with pytest.raises(ConfigError, match="no text"):
        shards_of_texts([("b", " \n")], tmp_path / "t", tokenizer)


# --- reading


def stream(folder: Path, tokenizer: Tokenizer, *, rank: int = 0, world: int = 1, **settings: Any) -> Loader:
    splits = load_splits(DataConfig(path=str(folder), eval_share=0.1), tokenizer, seq_len=32)
    return Loader(splits.train, seq_len=32, micro_batch=2, seed=5, rank=rank, world_size=world, **settings)


def rows(batches: Iterator[Any], count: int) -> list[list[int]]:
    return [batch.tokens_T.tolist() for batch in islice(batches, count)]


def test_a_run_learns_from_shards_what_it_learns_from_the_texts(
    shards: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for _, text in DOCUMENTS))
    ours, theirs = (
        load_splits(DataConfig(path=str(path), eval_share=0.1), tokenizer, seq_len=32) for path in (shards, file)
    )
    assert ours.eval is not None
    assert theirs.eval is not None
    assert (ours.train.num_tokens, ours.train.num_labels) == (theirs.train.num_tokens, theirs.train.num_labels)

    def samples(dataset: Any) -> list[tuple[Any, ...]]:
        return sorted((*dataset[i].tokens.tolist(), -1, *dataset[i].labels.tolist()) for i in range(len(dataset)))

    assert samples(ours.train) == samples(theirs.train)  # longer than a row: split in the same places
    assert ours.eval.num_labels > 0
    learned = {tuple(ours.train.files.documents["content"][ours.train.documents].tolist())}
    held_out = set(ours.eval.files.documents["content"][ours.eval.documents].tolist())
    assert not held_out & set(*learned)


def test_it_goes_on_exactly_under_another_number_of_processes(shards: Path, tokenizer: Tokenizer) -> None:
    whole = stream(shards, tokenizer)
    everything = rows(iter(whole), 60)  # more than an epoch
    begun = stream(shards, tokenizer)
    assert rows(iter(begun), 20) == everything[:20]
    state = json.loads(json.dumps(begun.state()))
    for world in (1, 2, 4):
        parts = []
        for rank in range(world):
            loader = stream(shards, tokenizer, rank=rank, world=world, workers=rank % 2)
            loader.load(state)
            parts.append(rows(iter(loader), 40 // world))
        assert [row for turn in zip(*parts, strict=True) for row in turn] == everything[20:60]


def test_a_position_fits_only_the_same_shards(shards: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    shards_of_texts(DOCUMENTS, tmp_path / "s", tokenizer, seed=9)
    other = stream(tmp_path / "s", tokenizer)
    with pytest.raises(ConfigError, match="cannot go on"):
        other.load(stream(shards, tokenizer).state())


def test_several_folders_are_sources_with_weights(shards: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    shards_of_texts([("x", "something else entirely")], tmp_path / "s", tokenizer)
    config = DataConfig.model_validate(
        {"path": [str(shards), {"path": str(tmp_path / "s"), "weight": 3.0}], "eval_share": 0.0}
    )
    splits = load_splits(config, tokenizer, seq_len=64)
    sources = splits.train.files.documents["source"][splits.train.documents]
    assert int((sources == 1).sum()) == 3
    last = tokenizer.decode(splits.train[len(splits.train) - 1].tokens.tolist())
    assert last == "something else entirely"


# --- what is refused


def test_another_tokenizer_other_data_and_vain_settings_are_refused(
    shards: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    other = train_tokenizer(TokenizerSpec("byte-bpe", 384), lambda: ["other text " * 9]).tokenizer
    with pytest.raises(ConfigError, match=r"another tokenizer.*tokenizer=.*/tokenizer"):
        load_splits(DataConfig(path=str(shards)), other, seq_len=32)
    (tmp_path / "a.txt").write_text("plain")
    with pytest.raises(ConfigError, match="cannot be mixed"):
        load_splits(DataConfig(path=[str(shards), str(tmp_path / "a.txt")]), tokenizer, seq_len=32)
    with pytest.raises(ConfigError, match=r"data\.add_eos, data\.train_on: .*do nothing"):
        load_splits(DataConfig(path=str(shards), add_eos=False, train_on="last"), tokenizer, seq_len=32)
    templated = Tokenizer(
        tokenizer_of(shards)._backend, origin="x", names=tokenizer.special_tokens, chat_templates={"default": "x"}
    )
    assert load_splits(DataConfig(path=str(shards)), templated, seq_len=32).train.num_tokens  # a template changes no id


def test_shards_that_are_damaged_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shards_of_texts(DOCUMENTS[:9], tmp_path, tokenizer)
    body, index = tmp_path / "shard-00000.bin", tmp_path / "index.json"
    data, said = body.read_bytes(), index.read_text()
    body.write_bytes(data[:-2])
    with pytest.raises(FormatError, match="the index says"):
        open_shards([tmp_path], tokenizer)
    body.unlink()
    with pytest.raises(FormatError, match="missing"):
        open_shards([tmp_path], tokenizer)
    for broken in ("{", "[]", said.replace("shards-1", "shards-9")):
        index.write_text(broken)
        with pytest.raises(FormatError):
            open_shards([tmp_path], tokenizer)


# --- the step


def test_the_step_writes_the_same_shards_and_lets_documents_through(
    shards: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "tok")
    step = Tokenize(TokenizeOptions(tokenizer=str(tmp_path / "tok")), Context(seed=3))
    documents = [Document(name, text) for name, text in DOCUMENTS]
    for n in range(3):
        (tmp_path / f"{n}").write_bytes(step.observe(documents[n * 100 : n * 100 + 100]))
    step.decide([tmp_path / f"{n}" for n in range(3)], tmp_path)
    shards_of_texts(DOCUMENTS, tmp_path / "direct", tokenizer, seed=3)
    assert contents(tmp_path / "output") == contents(tmp_path / "direct")
    tally = Tally()
    assert step.apply(documents, tally, tmp_path, 0) == documents
    assert tally.kept == 300
    with pytest.raises(ConfigError, match="no plain text"):
        step.observe([Document("c#1", "hi", {"messages": []}, derived=True)])
    with pytest.raises(ConfigError, match="tokenizer train writes one"):
        Tokenize(TokenizeOptions(tokenizer=str(tmp_path / "none")), Context())


def test_a_shard_is_written_from_any_number_of_observed_files(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shardable = Shardable(tokenizer, seed=0)
    for n in range(4):
        (tmp_path / f"{n}").write_bytes(shardable.observe(DOCUMENTS[n : n + 1] if n else []))
    index = write_shards([tmp_path / f"{n}" for n in range(4)], tmp_path / "s", tokenizer, seed=0, manifest="m")
    assert index["documents"] == 3
    assert index["data"]["manifest"] == "m"


# --- a curated set as data


def test_a_manifest_names_its_training_files(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text('{"step": "x"}\n')
    outputs = []
    for split in ("train", "validation"):
        file = tmp_path / f"{split}-00000.jsonl"
        file.write_text('{"text": "a"}\n')
        outputs.append({"file": file.name, "split": split, "bytes": file.stat().st_size})
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"format": "tokenmill-data-1", "outputs": outputs}))
    for given in (tmp_path, manifest):
        assert [file.name for file in find_files(str(given))] == ["train-00000.jsonl"]
    (tmp_path / "train-00000.jsonl").write_text("changed since then\n")
    with pytest.raises(FormatError, match="curate the set again"):
        find_files(str(manifest))
    manifest.write_text(json.dumps({"format": "tokenmill-data-1", "outputs": outputs[1:]}))
    with pytest.raises(NotFoundError, match="empty"):
        find_files(str(manifest))
