"""What curation reads: every format, every compression, and input that is broken in every way we know of."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from tokenmill.core.errors import NotFoundError
from tokenmill.data.curate.files import Source, find_sources, jobs, scan
from tokenmill.data.curate.read import Bad, read_piece
from tokenmill.data.curate.recipe import Input
from tokenmill.data.curate.step import Document
from tokenmill.data.curate.streams import BrokenStream, Line, Stream, blocks, lines

MB = 1 << 20


def read(path: Path, every: int = 32 * MB, **options: Any) -> list[Document | Bad]:
    """All documents of a path, through the plan, as a run reads them."""
    config = Input(path=str(path), **options)
    sources, _ = find_sources(config)
    planned = jobs(sources, [scan(source, every) for source in sources], every)
    return [found for job in planned for piece in job for found in read_piece(piece, config)]


def texts(found: list[Document | Bad]) -> list[str]:
    return [one.text for one in found if isinstance(one, Document)]


def bad(found: list[Document | Bad]) -> list[tuple[str, int, str]]:
    return [(one.file, one.line, one.reason) for one in found if isinstance(one, Bad)]


ROWS = b'{"text": "one"}\n{"text": "two", "url": "u"}\n\n{"text": "three"}'


@pytest.mark.parametrize(
    ("suffix", "squeeze"),
    [
        ("", bytes),
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", lambda content: pyarrow.compress(content, codec="zstd", asbytes=True)),
    ],
)
def test_every_compression(tmp_path: Path, suffix: str, squeeze: Callable[[bytes], bytes]) -> None:
    half = len(ROWS) // 2
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(squeeze(ROWS[:half]) + squeeze(ROWS[half:]))  # as `cat a.gz b.gz` makes it
    found = read(path)
    assert [(one.id, one.text) for one in found if isinstance(one, Document)] == [
        (f"{path.name}#1", "one"),
        (f"{path.name}#2", "two"),
        (f"{path.name}#4", "three"),
    ]
    assert not bad(found)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_truncated_compression_gives_what_came_before(tmp_path: Path, suffix: str) -> None:
    squeeze: dict[str, Any] = {
        ".gz": gzip.compress,
        ".bz2": lambda content: bz2.compress(content, 1),  # whose blocks are 100 KB
        ".xz": lambda content: lzma.compress(content, preset=0),
        ".zst": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
    }
    import random

    noise = random.Random(1)
    rows = b"".join(
        json.dumps({"text": "".join(noise.choices("abcdefgh ", k=2000))}).encode() + b"\n" for _ in range(800)
    )
    path = tmp_path / f"a.jsonl{suffix}"
    content = squeeze[suffix](rows)
    path.write_bytes(content[: len(content) // 2])
    found = read(path)
    assert len(bad(found)) == 1
    assert "the compressed file" in bad(found)[0][2]
    got = texts(found)
    assert len(got) > 100
    assert got == [json.loads(line)["text"] for line in rows.split(b"\n")[: len(got)]]
    path.write_bytes(b"this was never compressed" * 10)
    assert len(bad(read(path))) == 1


def test_broken_lines_are_told_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"\n".join(
            [
                b'\xef\xbb\xbf{"text": "with a mark"}',
                b'{"text": "caf\xe9"}',
                b'{"text": "half',
                b'["a", "list"]',
                b'{"body": "no text", "url": "u"}',
                b'{"text": 7}',
                b'{"text": "  "}',
                b'{"text": "\\ud800"}',
                b'{"text": "' + b"x" * (MB + 1) + b'"}',
                b"[" * 100_000,
                b'{"text": "x", "n": NaN}',
                b'{"text": "x", "n": "\\uDfff"}',
                b'{"text": "good", "n": "\\ud83d\\ude00"}',
                b'{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "there"}]}',
            ]
        )
    )
    found = read(path, max_mb=1)
    assert texts(found) == ["with a mark", "good", "hello\nthere"]
    assert isinstance(found[-1], Document)
    assert found[-1].derived
    reasons = {line: reason for _, line, reason in bad(found)}
    assert sorted(reasons) == list(range(2, 13))
    for line, part in (
        (2, "not UTF-8 at byte 13"),
        (3, "not JSON"),
        (4, "list"),
        (5, "no column 'text'; its columns: body, url"),
        (6, "no text"),
        (7, "empty"),
        (8, "surrogate"),
        (9, f"{MB + 13:,} bytes"),
        (10, "not JSON"),
        (11, "NaN"),
        (12, "surrogate"),
    ):
        assert part in reasons[line]


def test_a_long_line_takes_no_memory(tmp_path: Path) -> None:
    """256 MB here; `benchmarks/curation.py --long-line` does it with 1 GB."""
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "before"}\n')
        file.truncate(256 * MB)
        file.seek(0, 2)
        file.write(b'\n{"text": "after"}\n')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = read(path, every=8 * MB)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KB
    assert [one.id for one in found if isinstance(one, Document)] == ["a.jsonl#1", "a.jsonl#3"]
    assert bad(found)[0][1] == 2


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(200):
            file.write(bytes(MB))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "longer than input.max_mb" in bad(read(path))[0][2]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000


def test_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufefffirst line\nsecond\n\n  \nünï\n".encode())
    assert texts(read(path)) == ["first line\nsecond\n\n  \nünï\n"]
    assert texts(read(path, text_as="lines")) == ["first line", "second", "ünï"]
    found = read(path, text_as="paragraphs")
    assert [(one.id, one.text) for one in found if isinstance(one, Document)] == [
        ("a.txt#1", "first line\nsecond"),
        ("a.txt#5", "ünï"),
    ]
    path.write_bytes(b"good\n\nbad \xff here\n\ngood too")
    assert bad(read(path)) == [("a.txt", 3, "not UTF-8 at byte 10 of the file")]
    found = read(path, text_as="paragraphs")
    assert texts(found) == ["good", "good too"]
    assert bad(found) == [("a.txt", 3, "not UTF-8")]
    path.write_bytes(b"")
    assert bad(read(path)) == [("a.txt", 0, "empty file")]
    path.write_bytes(b"x" * (MB + 1))
    assert "text_as=paragraphs" in bad(read(path, max_mb=1))[0][2]


def test_pages_in_their_own_encoding(tmp_path: Path) -> None:
    pages = {
        "utf8": "<p>ünï".encode(),
        "declared": '<meta charset="windows-1251"><p>привет'.encode("cp1251"),
        "latin": '<meta http-equiv=x content="text/html; charset=ISO-8859-1"><p>it\u2019s'.encode("cp1252"),
    }
    for name, content in pages.items():
        (tmp_path / f"{name}.html").write_bytes(content)
    found = read(tmp_path)
    assert [one.meta for one in found if isinstance(one, Document)] == [{"content_type": "text/html"}] * 3
    assert [text[-6:] for text in texts(found)] == ["привет", "p>it\u2019s", "<p>ünï"]
    (tmp_path / "utf8.html").write_bytes(b"<p>\xff")
    (tmp_path / "latin.html").write_bytes(b"<meta charset=martian>")
    assert [reason[:16] for _, _, reason in bad(read(tmp_path))] == ["unknown encoding", "not UTF-8, and n"]


def test_tables(tmp_path: Path) -> None:
    import datetime

    rows = [{"text": f"row {n}", "n": n, "when": datetime.date(2024, 1, 1), "deep": {"a": [n]}} for n in range(1000)]
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    with ipc.new_file(tmp_path / "b.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=300)
    with ipc.new_stream(tmp_path / "c.arrow", table.schema) as stream:
        stream.write_table(table)
    (tmp_path / "d.json").write_text(json.dumps([{"text": f"row {n}"} for n in range(1000)]))
    for name in ("a.parquet", "b.arrow", "c.arrow", "d.json"):
        found = read(tmp_path / name, every=1000)
        assert texts(found) == [f"row {n}" for n in range(1000)], name
        assert [one.id for one in found if isinstance(one, Document)] == [f"{name}#{n}" for n in range(1, 1001)]
    first = read(tmp_path / "a.parquet")[0]
    assert isinstance(first, Document)
    assert first.meta == {"n": 0, "when": "2024-01-01", "deep": {"a": [0]}}


def test_broken_tables(tmp_path: Path) -> None:
    parquet.write_table(
        pyarrow.table({"text": [b"fine", b"caf\xe9"], "x": [float("nan"), 1.0]}), tmp_path / "b.parquet"
    )
    found = read(tmp_path / "b.parquet")
    assert (texts(found), bad(found)) == (["fine"], [("b.parquet", 2, "a column of bytes that are not UTF-8")])
    (tmp_path / "b.parquet").unlink()
    parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "columns.parquet")
    for name in ("half.parquet", "half.arrow", "none.parquet", "none.arrow", "none.json", "half.json"):
        (tmp_path / name).write_bytes(b"" if name.startswith("none") else b'ARROW1[{"text": "x"},')
    (tmp_path / "object.json").write_text('{"text": "x"}')
    found = read(tmp_path)
    assert not texts(found)
    assert sorted(name for name, _, _ in bad(found)) == sorted(file.name for file in tmp_path.iterdir())
    assert ("columns.parquet", 1, "no column 'text'; its columns: body") in bad(found)


def _record(kind: bytes, mime: bytes, body: bytes, status: bytes = b"200 OK") -> bytes:
    http = b"HTTP/1.1 " + status + b"\r\nContent-Type: " + mime + b"\r\n\r\n" + body
    head = b"WARC/1.0\r\nWARC-Type: " + kind + b"\r\nWARC-Target-URI: http://x/\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
    if kind == b"conversion":
        http, kind_of = body, mime
    else:
        kind_of = b"application/http; msgtype=response"
    return head + b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n" % (kind_of, len(http), http)


def test_web_archives(tmp_path: Path) -> None:
    records = [
        _record(b"response", b"text/html; charset=iso-8859-2", "<p>żółw".encode("iso-8859-2")),
        _record(b"response", b"image/png", b"\x89PNG"),
        _record(b"response", b"text/html", b"<p>not found", b"404 Not Found"),
        _record(b"response", b"text/html; charset=utf-8", b"<p>\xff\xfe"),
        _record(b"response", b"text/plain", b"plain"),
        _record(b"conversion", b"text/plain", "übersetzt".encode()),
    ]
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(map(gzip.compress, records)))
    found = read(path)
    assert texts(found) == ["<p>żółw", "plain", "übersetzt"]
    assert isinstance(found[0], Document)
    assert found[0].meta == {"url": "http://x/", "date": "2024-01-01T00:00:00Z", "content_type": "text/html"}
    assert bad(found) == [
        ("a.warc.gz", 4, "not utf-8: 'utf-8' codec can't decode byte 0xff in position 3: invalid start byte")
    ]
    path.write_bytes(path.read_bytes()[:-20])
    found = read(path)
    assert texts(found) == ["<p>żółw", "plain"]
    assert bad(found)[-1][2] == "the compressed file ends early"
    (tmp_path / "b.warc").write_bytes(b"no archive\r\n")
    assert "not a web archive" in bad(read(tmp_path / "b.warc"))[0][2]


@given(
    st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=20),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_lines_are_those_of_split(content: list[bytes], size: int, most: int) -> None:
    whole = b"\n".join(content)
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    wanted = whole.split(b"\n")
    if not wanted[-1]:
        wanted.pop()
    assert list(lines(iter(pieces), most)) == [
        Line(number, line if len(line) <= most else b"", len(line)) for number, line in enumerate(wanted, 1)
    ]


def test_a_stream_that_breaks_gives_whole_lines_only() -> None:
    def source() -> Iterator[bytes]:
        yield b"one\ntwo\nthr"
        raise BrokenStream

    found = lines(source(), 100)
    assert [next(found).content, next(found).content] == [b"one", b"two"]
    with pytest.raises(BrokenStream):
        next(found)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=60), st.integers(1, 300))
def test_a_cut_file_is_read_whole(lengths: list[int], every: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(b"\n".join(b"x" * length for length in lengths))
        source = Source(str(path), "a", "jsonl", path.stat().st_size, 0)
        cuts = scan(source, every).cuts
        planned = jobs([source], [scan(source, every)], every)
        pieces = [piece for job in planned for piece in job]
        assert len(pieces) == len(cuts)
        found = [
            (line.number, line.length)
            for piece in pieces
            for line in lines(blocks(path, piece.start, piece.end), 1000, piece.first)
        ]
    assert [pair for pair in found if pair[1]] == [(n, length) for n, length in enumerate(lengths, 1) if length]


def test_small_files_share_a_job_and_large_ones_are_cut(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text("x" * 100)
    (tmp_path / "big.jsonl").write_text('{"text": "0123456789"}\n' * 100)
    sources, _ = find_sources(Input(path=str(tmp_path)))
    planned = jobs(sources, [scan(source, 500) for source in sources], 500)
    assert [len(job) for job in planned[:2]] == [5, 5]
    assert all(len(job) == 1 for job in planned[2:])
    assert len(planned) == 2 + 5
    assert len(texts(read(tmp_path, every=500))) == 110


def test_which_files(tmp_path: Path) -> None:
    for name in ("a.jsonl", "sub/b.txt.gz", "sub/c.png", ".hidden/d.txt", "e.jsonl.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    sources, unknown = find_sources(Input(path=str(tmp_path)))
    assert [(source.name, source.kind) for source in sources] == [("a.jsonl", "jsonl"), ("sub/b.txt.gz", "text")]
    assert unknown == 2
    sources, unknown = find_sources(Input(path=[str(tmp_path / "sub"), str(tmp_path / "*.jsonl")], format="text"))
    assert [source.kind for source in sources] == ["text"] * 3
    (tmp_path / "other" / "sub").mkdir(parents=True)
    (tmp_path / "other" / "b.txt.gz").write_text("y")
    sources, _ = find_sources(Input(path=[str(tmp_path / "sub"), str(tmp_path / "other")]))
    assert [source.name for source in sources] == ["b.txt.gz", "b.txt.gz~2"]
    with pytest.raises(NotFoundError, match="no such file"):
        find_sources(Input(path=str(tmp_path / "nowhere")))


def test_stream_reads_like_a_file() -> None:
    stream = Stream(iter([b"abc", b"", b"defg"]))
    assert [stream.read(2), stream.read(2), stream.read(10), stream.read(1)] == [b"ab", b"c", b"defg", b""]
    assert stream.tell() == 7
