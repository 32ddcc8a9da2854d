"""Blobs: what has a digest's name has its content, whatever was planted, cut off or damaged."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tokenmill.core.errors import DigestError, NotFoundError, StoreError
from tokenmill.store.blobs import ORPHAN_AGE_S, BlobStore

DATA = b"weights" * 1000
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "store")


def age(path: Path) -> None:
    then = path.stat().st_mtime - 2 * ORPHAN_AGE_S
    os.utime(path, (then, then))


def test_bytes_get_the_digest_of_their_content(blobs: BlobStore) -> None:
    assert blobs.add_bytes(DATA) == DIGEST
    assert blobs.path(DIGEST).read_bytes() == DATA
    assert blobs.path(DIGEST).name == DIGEST.replace(":", "-")  # Ollama's naming
    assert [path.name for path in blobs.folder.iterdir()] == [blobs.path(DIGEST).name]


def test_a_finished_download_is_adopted(blobs: BlobStore) -> None:
    partial = blobs.partial_path("https://h/x")
    partial.write_bytes(DATA)
    assert blobs.adopt(partial, DIGEST) == blobs.path(DIGEST)
    assert blobs.has(DIGEST, len(DATA))
    assert not partial.exists()


def test_a_download_with_another_digest_is_discarded(blobs: BlobStore) -> None:
    partial = blobs.partial_path("https://h/x")
    partial.write_bytes(DATA + b"!")
    with pytest.raises(DigestError, match=DIGEST):
        blobs.adopt(partial, DIGEST)
    assert not partial.exists()
    assert not blobs.has(DIGEST)


def test_partials_are_found_again_and_do_not_clash(blobs: BlobStore) -> None:
    keys = ["https://h/x", "https://h/y", "../../etc/passwd", "x\0y", DIGEST]
    paths = {blobs.partial_path(key) for key in keys}
    assert len(paths) == len(keys)
    assert all(path.parent == blobs.folder for path in paths)
    assert blobs.partial_path(keys[2]) == BlobStore(blobs.root).partial_path(keys[2])


def test_a_blob_that_links_out_of_the_store_is_refused(blobs: BlobStore, tmp_path: Path) -> None:
    blobs.add_bytes(b"x")
    (tmp_path / "secret").write_bytes(DATA)
    (blobs.folder / DIGEST.replace(":", "-")).symlink_to(tmp_path / "secret")
    for use in (blobs.has, blobs.path, blobs.verify, lambda digest: blobs.read(digest, 1 << 20)):
        with pytest.raises(StoreError, match="leads out of the store"):
            use(DIGEST)


def test_a_store_whose_blob_folder_is_a_link_works(blobs: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "big-disk").mkdir()
    blobs.root.mkdir()
    blobs.folder.symlink_to(tmp_path / "big-disk")
    assert blobs.has(blobs.add_bytes(DATA))


def test_damage_is_noticed(blobs: BlobStore) -> None:
    blobs.add_bytes(DATA)
    assert blobs.verify(DIGEST)
    with blobs.path(DIGEST).open("r+b") as file:
        file.write(b"W")
    assert blobs.has(DIGEST, len(DATA))
    assert not blobs.verify(DIGEST)
    with pytest.raises(DigestError):
        blobs.read(DIGEST, 1 << 20)


def test_reading_is_bounded(blobs: BlobStore) -> None:
    blobs.add_bytes(DATA)
    with pytest.raises(StoreError, match="at most 10"):
        blobs.read(DIGEST, 10)
    with pytest.raises(NotFoundError):
        blobs.read("sha256:" + "0" * 64, 10)


def test_prune_removes_what_was_given_up_and_old_orphans_only(blobs: BlobStore) -> None:
    kept, freed, fresh, old = (blobs.add_bytes(text) for text in (b"kept", b"freed", b"fresh", b"old"))
    age(blobs.path(old))
    age(blobs.path(kept))
    assert blobs.prune({freed, kept}, {kept}) == len(b"freed") + len(b"old")
    assert [blobs.has(digest) for digest in (kept, freed, fresh, old)] == [True, False, True, False]


def test_prune_leaves_partials_in_use(blobs: BlobStore) -> None:
    for key in ("held", "abandoned", "recent"):
        blobs.partial_path(key).write_bytes(b"half")
    age(blobs.partial_path("held"))
    age(blobs.partial_path("abandoned"))
    ready, done = threading.Event(), threading.Event()

    def download() -> None:
        with blobs.lock("held"):
            ready.set()
            done.wait(10)

    thread = threading.Thread(target=download)
    thread.start()
    ready.wait(10)
    with blobs.lock("abandoned"):
        pass
    blobs.prune((), ())
    done.set()
    thread.join()
    assert [blobs.partial_path(key).exists() for key in ("held", "abandoned", "recent")] == [True, False, True]


def test_a_lock_waits_and_says_so(blobs: BlobStore) -> None:
    order: list[str] = []
    inside, said = threading.Event(), threading.Event()

    def second() -> None:
        inside.wait(10)
        with blobs.lock("x", on_wait=said.set):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with blobs.lock("x"):
        inside.set()
        assert said.wait(10)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_lock_dies_with_its_process(blobs: BlobStore) -> None:
    program = (
        "import os, sys; from pathlib import Path; from tokenmill.store.blobs import BlobStore\n"
        "lock = BlobStore(Path(sys.argv[1])).lock('x'); lock.__enter__(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", program, str(blobs.root)], check=False, timeout=60)
    waits: list[bool] = []
    with blobs.lock("x", on_wait=lambda: waits.append(True)):
        assert not waits
