"""From files to batches: reading, checks, packing, and an order that survives every way of stopping."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tokenmill.config.recipe import DataConfig
from tokenmill.core.errors import ConfigError, FormatError, NotFoundError
from tokenmill.data.batch import NO_LABEL, Batch, Sample
from tokenmill.data.dataset import Dataset
from tokenmill.data.files import Broken, Row, find_files, read_rows
from tokenmill.data.loader import Loader
from tokenmill.data.packing import best_fit
from tokenmill.data.prepare import Splits, load_splits
from tokenmill.data.tokens import TokenFiles, TokenWriter
from tokenmill.data.vocabulary import train_tokenizer
from tokenmill.text.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """As a pretraining run makes it, with ChatML on top."""
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_text("the quick brown fox jumps over the lazy dog 12345\n" * 200)
    plain = train_tokenizer(DataConfig(path=str(file)), 300)
    names = {**plain.special_tokens, "eos_token": "<|im_end|>"}
    return Tokenizer(plain._backend, origin="test", names=names, chat_templates={"default": CHATML})


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def pairs(count: int, length: int = 3) -> list[dict[str, str]]:
    return [{"prompt": f"what is {n}?", "completion": f"{n} " * (1 + n % length)} for n in range(count)]


def splits_of(path: Path, tokenizer: Tokenizer, *, seq_len: int = 64, **settings_: Any) -> Splits:
    return load_splits(DataConfig(path=str(path), **settings_), tokenizer, seq_len=seq_len)


# --- files


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "ß"}]}, {"messages": [{"role": "user", "content": "b"}]}]
    jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as zipped:
        zipped.write("\n".join(map(json.dumps, rows)))
    with pyarrow.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as squeezed:
        squeezed.write("\n".join(map(json.dumps, rows)).encode())
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    files = find_files(str(tmp_path))
    assert len(files) == 5
    for file in files:
        assert [row.value for row in read_rows(file) if isinstance(row, Row)] == rows


def test_columns_of_parquet_do_not_invent_keys(tmp_path: Path) -> None:
    rows = [{"text": "a", "extra": None}, {"text": None, "extra": {"x": 1, "y": None}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [row.value for row in read_rows(tmp_path / "a.parquet")] == [{"text": "a"}, {"extra": {"x": 1}}]  # type: ignore[union-attr]


def test_broken_lines_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n{"text": \n\n[1]\n{"text": "\xff"}\n{"text": "b"}')
    found = list(read_rows(file))
    assert [row.value["text"] for row in found if isinstance(row, Row)] == ["a", "b"]
    assert [str(row).rpartition("/")[2][:14] for row in found if isinstance(row, Broken)] == [
        "a.jsonl:2: not",
        "a.jsonl:4: a r",
        "a.jsonl:5: not",
    ]
    (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    for name in ("b.jsonl.gz", "b.parquet"):
        with pytest.raises(FormatError, match=name):
            list(read_rows(tmp_path / name))


@given(st.text(alphabet="aß\n €", max_size=9000))
@settings(max_examples=20, deadline=None)
def test_plain_text_comes_in_pieces_without_loss(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.mktemp("t") / "a.txt"
    file.write_bytes(text.encode())
    rows = list(read_rows(file))
    assert all(isinstance(row, Row) for row in rows)
    assert "".join(row.value["text"] for row in rows if isinstance(row, Row)) == text


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        find_files(str(tmp_path / "x"))
    with pytest.raises(NotFoundError, match="no data files"):
        find_files(str(tmp_path))
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ConfigError, match=r"\.jsonl"):
        find_files(str(tmp_path / "a.csv"))


# --- checks


def test_checks_count_everything(tmp_path: Path, tokenizer: Tokenizer) -> None:
    long = {"prompt": "long", "completion": "quick " * 300}
    rows = [*pairs(60), pairs(60)[3], "{broken", {"prompt": "x", "completion": " "}, long]
    splits = splits_of(jsonl(tmp_path / "a.jsonl", rows), tokenizer)
    report = splits.report
    assert (report.rows, report.broken, report.empty) == (64, 1, 1)
    assert report.broken_rows[0].startswith(f"{tmp_path}/a.jsonl:62: not JSON")
    assert report.train.truncated + report.eval.truncated == 1
    assert report.train.duplicates <= 1  # both are on one side
    assert report.train.documents + report.eval.documents == 62
    assert 0 < report.train.label_share < 1
    assert report.train.tokens == sum(len(splits.train[i]) for i in range(len(splits.train)))
    assert report.train.labels == sum(int((splits.train[i].labels != NO_LABEL).sum()) for i in range(len(splits.train)))
    assert any("broken" in warning for warning in report.warnings())


def test_too_many_broken_rows_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", [*pairs(5), "{", "{"])
    with pytest.raises(ConfigError, match=r"2 of 7 rows.*max_broken=0.05[\s\S]*a\.jsonl:6"):
        splits_of(file, tokenizer)
    assert splits_of(file, tokenizer, max_broken=0.5).report.broken == 2


def test_preferences_stop_the_run(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", [*pairs(3), {"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(ConfigError, match=r"a\.jsonl:4: a preference pair"):
        splits_of(file, tokenizer)


def test_a_row_without_any_label_is_shown(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [*pairs(30), {"prompt": "brown " * 100, "completion": "x"}]
    file = jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        ConfigError, match=r"1 rows have no label at all[\s\S]*a\.jsonl:31[\s\S]*raise seq_len[\s\S]*brown"
    ):
        splits_of(file, tokenizer, eval_share=0.0)
    splits = splits_of(file, tokenizer, eval_share=0.0, masked="drop")
    assert (splits.report.train.masked, len(splits.train)) == (1, 30)


def test_splits_do_not_share_and_do_not_move(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def held_out(count: int) -> set[str]:
        rows = [*pairs(count), *pairs(10)]  # duplicates, which must lie on one side
        splits = splits_of(jsonl(tmp_path / f"{count}.jsonl", rows), tokenizer, eval_share=0.2)
        assert splits.eval is not None
        sides = [
            {tokenizer.decode(one[i].tokens.tolist()) for i in range(len(one))} for one in (splits.train, splits.eval)
        ]
        assert not sides[0] & sides[1]
        return sides[1]

    small, large = held_out(100), held_out(200)
    assert small < large, "more data moves nothing from one side to the other"
    assert 25 <= len(large) <= 55


def test_rows_that_are_in_the_evaluation_are_left_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    train, other = jsonl(tmp_path / "a.jsonl", pairs(20)), jsonl(tmp_path / "b.jsonl", pairs(5))
    splits = splits_of(train, tokenizer, eval=str(other))
    assert (splits.report.leaked, len(splits.train), len(splits.eval or [])) == (5, 15, 5)
    assert len(splits_of(train, tokenizer, eval=str(other), leakage="keep").train) == 20
    with pytest.raises(ConfigError, match=r"5 training documents are in the evaluation"):
        splits_of(train, tokenizer, eval=str(other), leakage="error")


def test_the_end_of_a_text_is_held_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lines = [f"line {n} of the lazy dog\n" for n in range(2000)]
    file = tmp_path / "a.txt"
    file.write_text("".join(lines))
    splits = splits_of(file, tokenizer, eval_share=0.1)
    assert splits.eval is not None
    texts = [
        "".join(tokenizer.decode(one[i].tokens.tolist()) for i in range(len(one)))
        for one in (splits.train, splits.eval)
    ]
    assert texts[0] + texts[1] == "".join(lines)
    assert 0.08 < len(texts[1]) / len("".join(lines)) < 0.12
    first = splits.train[0]
    assert first.tokens[0] == tokenizer.bos_token_id
    assert (first.labels[:-1] == first.tokens[1:]).all()
    assert first.labels[-1] == splits.train[1].tokens[0], "a split document loses no label"
    assert splits.byte_lengths_V[tokenizer.eos_token_id or 0] == 0
    counted = sum(int(splits.byte_lengths_V[splits.eval[i].labels].sum()) for i in range(len(splits.eval)))
    assert counted == len(texts[1].encode())


@pytest.mark.parametrize("policy", ["end", "start", "split", "drop"])
def test_truncation(tmp_path: Path, tokenizer: Tokenizer, policy: str) -> None:
    text = "".join(f"{n} fox " for n in range(40))
    splits = splits_of(
        jsonl(tmp_path / "a.jsonl", [{"text": "short"}, {"text": text}]), tokenizer, truncate=policy, eval_share=0.0
    )
    whole = [*tokenizer.encode(text), tokenizer.eos_token_id]
    samples = [splits.train[i] for i in range(len(splits.train))][1:]
    kept = np.concatenate([sample.tokens for sample in samples]).tolist() if samples else []
    inputs = whole[:-1]
    assert kept == {"end": inputs[:64], "start": inputs[-64:], "split": inputs, "drop": []}[policy]
    assert splits.report.train.tokens_lost == len(inputs) - len(kept)
    with pytest.raises(ConfigError, match=r"longer than 64 tokens, the first: .*a\.jsonl:2"):
        splits_of(tmp_path / "a.jsonl", tokenizer, truncate="error")


def test_weights_repeat_and_thin_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    a = jsonl(tmp_path / "a.jsonl", [{"text": f"a {n}"} for n in range(100)])
    b = jsonl(tmp_path / "b.jsonl", [{"text": f"b {n}"} for n in range(100)])
    path = [{"path": str(a), "weight": 2.0}, {"path": str(b), "weight": 0.3}]
    config = DataConfig.model_validate({"path": path, "eval_share": 0.0})
    train = load_splits(config, tokenizer, seq_len=64).train
    texts = [tokenizer.decode(train[i].tokens.tolist()) for i in range(len(train))]
    assert sum(text.startswith("a") for text in texts) == 200
    assert 15 <= sum(text.startswith("b") for text in texts) <= 45
    again = load_splits(config, tokenizer, seq_len=64).train
    assert again.fingerprint == train.fingerprint


def test_tokens_are_kept_until_something_changes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", pairs(10))
    cache = tmp_path / "home" / "cache" / "data"
    first = splits_of(file, tokenizer)
    assert splits_of(file, tokenizer).train.fingerprint == first.train.fingerprint
    assert len(list(cache.iterdir())) == 1
    assert splits_of(file, tokenizer, train_on="all").train.num_labels > first.train.num_labels
    assert len(list(cache.iterdir())) == 2
    jsonl(file, pairs(12))
    assert splits_of(file, tokenizer).report.rows == 12
    before = len(list(cache.iterdir()))
    uncached = splits_of(file, tokenizer, cache=False)
    assert len(uncached.train[0]) > 0
    assert len(list(cache.iterdir())) == before


# --- packing


@given(st.lists(st.integers(1, 40), max_size=120), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_best_fit(lengths: list[int], capacity: int) -> None:
    rows = best_fit(lengths, capacity)
    assert sorted(position for row in rows for position in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[i] for i in row) <= capacity or len(row) == 1
    # two rows that are not full never fit into one: that is what "best fit" leaves
    rooms = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(rooms) < 2 or rooms[0] + rooms[1] > capacity


def test_packing_fills_rows() -> None:
    lengths = np.random.Generator(np.random.Philox(1)).integers(10, 400, 2000).tolist()
    assert sum(lengths) / (512 * len(best_fit(lengths, 512))) > 0.98


# --- order


@dataclass
class Numbers:
    """Samples that are told apart by their tokens."""

    lengths: np.ndarray
    fingerprint: str = "numbers"

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        tokens = np.full(int(self.lengths[index]), index, np.int64)
        return Sample(index, tokens, tokens)


def numbers(count: int = 300) -> Numbers:
    return Numbers(np.random.Generator(np.random.Philox(7)).integers(1, 60, count))


def loader(data: Numbers | None = None, **options: Any) -> Loader:
    return Loader(data or numbers(), **{"seq_len": 64, "micro_batch": 3, "seed": 5, **options})


def taken(source: Iterator[Any], count: int) -> list[list[int]]:
    return [next(source).indices for _ in range(count)]


def test_batches_hold_whole_documents_and_an_epoch_holds_each_once() -> None:
    data = numbers()
    one = loader(data)
    batches = list(one.once())
    assert sorted(index for batch in batches for index in batch.indices) == list(range(len(data)))
    for batch in batches:
        assert isinstance(batch, Batch)
        assert len(batch.tokens_T) == sum(batch.lengths) <= 3 * 64
        assert batch.tokens_T.tolist() == [
            i for i, n in zip(batch.indices, batch.lengths, strict=True) for _ in range(n)
        ]
    assert one.rows_in_epoch() == sum(1 for _ in Loader(data, seq_len=64, micro_batch=1, seed=5).once())


def test_order_follows_from_the_seed_and_changes_with_the_epoch() -> None:
    data = numbers(50)
    per_epoch = -(-loader(data).rows_in_epoch() // 3)
    first = taken(iter(loader(data)), 2 * per_epoch)
    assert first == taken(iter(loader(data)), 2 * per_epoch)
    assert first != taken(iter(loader(data, seed=6)), 2 * per_epoch)
    assert first[:per_epoch] != first[per_epoch:]
    plain = taken(iter(loader(data, shuffle=False, packing=False, micro_batch=1)), 52)
    assert [index for [index] in plain] == [*range(50), 0, 1]


@pytest.mark.parametrize("workers", [0, 2])
@given(stop=st.integers(0, 80))
@settings(max_examples=15, deadline=None)
def test_going_on_from_any_place_is_exact(workers: int, stop: int) -> None:
    data = numbers()
    expected = taken(iter(loader(data)), 100)  # more than an epoch
    one = loader(data, workers=workers)
    source = iter(one)
    assert taken(source, stop) == expected[:stop]
    state = json.loads(json.dumps(one.state()))
    other = loader(data, workers=2 - workers)
    other.load(state)
    assert taken(iter(other), 100 - stop) == expected[stop:]


@given(st.integers(0, 12), st.sampled_from([(1, 2), (2, 1), (2, 4), (4, 1)]))
@settings(max_examples=15, deadline=None)
def test_order_survives_another_number_of_processes(stop: int, sizes: tuple[int, int]) -> None:
    """Rows of all processes together come in one global order, whatever their number."""

    def rows(size: int, state: dict[str, Any] | None, count: int) -> tuple[list[list[int]], dict[str, Any]]:
        processes = [loader(micro_batch=1, rank=rank, world_size=size) for rank in range(size)]
        for process in processes:
            if state is not None:
                process.load(state)
        sources = [iter(process) for process in processes]
        found = [row for _ in range(count) for source in sources for row in taken(source, 1)]
        assert len({json.dumps(process.state()) for process in processes}) <= 1 or count == 0
        return found, processes[0].state()

    before, after = sizes
    expected, _ = rows(1, None, before * stop + 40)
    first, state = rows(before, None, stop)
    second, _ = rows(after, state, 40 // after)
    assert first + second == expected


def test_skip_passes_over_exactly_those_batches() -> None:
    expected = taken(iter(loader()), 20)
    one = loader()
    source = iter(one)
    taken(source, 4)
    one.skip(6)
    assert taken(iter(one), 10) == expected[10:]


def test_a_state_of_other_data_is_refused() -> None:
    state = loader().state()
    for other in (loader(Numbers(numbers().lengths, "others")), loader(seed=6), loader(seq_len=65)):
        with pytest.raises(ConfigError, match="cannot go on with this data in the same order"):
            other.load(state)


def test_parts_of_epochs() -> None:
    one = loader()
    rows = [one.rows_in_epoch(epoch) for epoch in range(3)]
    assert one.rows_in_epochs(2.0) == rows[0] + rows[1]
    assert one.rows_in_epochs(2.5) == rows[0] + rows[1] + -(-rows[2] // 2)
    assert one.state()["rows"] == 0, "counting leaves the position alone"


def test_what_a_sample_draws_does_not_depend_on_the_batch() -> None:
    """Masks follow from seed, epoch and sample, so they are the same however rows are spread."""

    def drawn(micro_batch: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []

        def collate(samples: Any, seed: int) -> Batch:
            found.extend((sample.epoch, sample.index) for sample in samples)
            return Batch.of(samples)

        source = iter(loader(numbers(30), micro_batch=micro_batch, collate=collate))
        taken(source, 60 // micro_batch)
        return found

    assert drawn(1) == drawn(3) == drawn(4)


# --- the tokens' file


def test_labels_of_a_document_stay_inside_it(tmp_path: Path) -> None:
    with TokenWriter(tmp_path, 70_000) as writer:
        for ids, learned in (([1, 2, 69_999], [False, True, True]), ([4], [True]), ([5, 6], [False, True])):
            writer.append(ids, np.array(learned))
            writer.end_document(len(ids), sum(learned), row=1, line=1)
        writer.finish({"files": ["a"]})
    files = TokenFiles.open(tmp_path)
    data = Dataset(files, np.arange(3), seq_len=8, truncate="end")
    assert [data[i].tokens.tolist() for i in range(len(data))] == [[1, 2], [5]]
    assert [data[i].labels.tolist() for i in range(len(data))] == [[2, 69_999], [6]]
    assert data.labels.tolist() == [2, 1]
    raw = Dataset(files, np.arange(3), seq_len=8, truncate="end", causal=False)
    assert [raw[i].tokens.tolist() for i in range(len(raw))] == [[1, 2, 69_999], [4], [5, 6]]
