"""``/api/pull``, ``/api/push``, ``/api/create`` and ``/api/blobs``: models come, go and are made, with progress lines.

The store works in a thread; its progress becomes NDJSON lines ``{status, digest, total, completed}``, of which those
that only move a counter are thinned out. A client that goes away stops the work at its next report; what was fetched is
kept and used by the next try. A model is created from a model of this store or from blobs that were sent here, never
from a path; blobs are hashed while they arrive and kept only under the digest that they have.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import WithJsonSchema

from tokenmill.core.errors import FormatError, NotFoundError, StoreError, TokenmillError, UsageError
from tokenmill.serve.description import whole_or_streamed
from tokenmill.serve.ollama import fields, shapes
from tokenmill.serve.ollama.access import check_may_change
from tokenmill.serve.ollama.answers import Chunk
from tokenmill.serve.ollama.answers import lines as json_lines
from tokenmill.serve.replies import NDJSON, ndjson, reply
from tokenmill.store import Store
from tokenmill.store import parameters as params
from tokenmill.store.modelfile import Modelfile, write_modelfile
from tokenmill.store.names import check_digest, check_file_name, parse_reference
from tokenmill.store.progress import Progress
from tokenmill.text.any_template import check_template

router = APIRouter()
REPORT_EVERY_S = 0.1
_PROGRESS = whole_or_streamed(shapes.Progress, NDJSON, "Lines of progress; the last has the status success.")
_BLOB = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}, "required": True}
Digest = Annotated[str, WithJsonSchema({"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"})]


class _ClientGoneError(TokenmillError):
    """Stops the store's work from within its progress report."""


@dataclass
class Work:
    """One long job of the store's in a thread, and the lines that tell of it."""

    job: Callable[[Progress], object]
    _lines: asyncio.Queue[Chunk | None] = field(default_factory=asyncio.Queue)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _last: tuple[str, str | None] = ("", None)
    _reported: float = 0.0

    async def lines(self) -> AsyncGenerator[Chunk]:
        """The lines as they come, ``success`` the last. Raises what the job raises."""
        task = asyncio.create_task(asyncio.to_thread(self.job, self._progress))
        task.add_done_callback(lambda done: self._lines.put_nowait(None))
        try:
            while (line := await self._lines.get()) is not None:
                if line["status"] != "success":  # the store has its own; ours comes when it is true
                    yield line
            await task
            yield {"status": "success"}
        finally:
            self._stopped.set()

    def _progress(
        self, status: str, digest: str | None = None, total: int | None = None, completed: int | None = None
    ) -> None:
        if self._stopped.is_set():
            raise _ClientGoneError("the client closed the connection")
        now, same = time.monotonic(), self._last == (status, digest)
        if same and completed != total and now - self._reported < REPORT_EVERY_S:
            return
        self._last, self._reported = (status, digest), now
        told = {"status": status, "digest": digest, "total": total, "completed": completed}
        line = {name: value for name, value in told.items() if value is not None}
        self._loop.call_soon_threadsafe(self._lines.put_nowait, line)


@router.post("/api/pull", responses=_PROGRESS)
async def pull(request: Request, body: fields.Transfer) -> Response:
    """Fetch a model into the store."""
    check_may_change(request)
    name = _no_path(body.model)
    store: Store = request.app.state.manager.store
    return await _respond(Work(lambda progress: store.pull(name, progress)), body.stream)


@router.post("/api/push", responses=_PROGRESS)
async def push(request: Request, body: fields.Transfer) -> Response:
    """Upload a model to where its name says."""
    check_may_change(request)
    name = _no_path(body.model)
    store: Store = request.app.state.manager.store
    await asyncio.to_thread(store.resolve, name, paths=False)
    return await _respond(Work(lambda progress: store.push(name, None, progress)), body.stream)


@router.post("/api/create", responses=_PROGRESS)
async def create(request: Request, body: fields.Create) -> Response:
    """Make a model from another one or from blobs, with settings over it."""
    check_may_change(request)
    store: Store = request.app.state.manager.store
    if bool(body.from_) == bool(body.files):
        raise UsageError("one of from (a model of this store) and files (blobs sent to /api/blobs) is needed")
    _no_path(body.model)
    if body.from_:
        await asyncio.to_thread(_own_model, store, body.from_)
    modelfile = _modelfile(body)
    return await _respond(Work(lambda progress: _create(store, body, modelfile, progress)), body.stream)


@router.head("/api/blobs/{digest}", response_class=Response)
async def has_blob(request: Request, digest: Digest) -> Response:
    """200 if the store has it."""
    if not request.app.state.manager.store.library.blobs.has(check_digest(digest)):
        raise NotFoundError(f"blob {digest} is not here")
    return Response()


@router.post(
    "/api/blobs/{digest}",
    response_class=Response,
    responses={201: {"description": "It is kept now."}},
    openapi_extra={"requestBody": _BLOB},
)
async def send_blob(request: Request, digest: Digest) -> Response:
    """Keep the body if it has this digest."""
    check_may_change(request)
    blobs = request.app.state.manager.store.library.blobs
    if blobs.has(check_digest(digest)):
        return Response(status_code=200)
    with tempfile.NamedTemporaryFile(dir=blobs.partial_path(digest).parent, prefix="partial-", delete=False) as file:
        partial = Path(file.name)
        try:
            async for chunk in request.stream():
                await asyncio.to_thread(file.write, chunk)
            await asyncio.to_thread(file.flush)
            await asyncio.to_thread(blobs.adopt, partial, digest)
        finally:
            partial.unlink(missing_ok=True)
    return Response(status_code=201)


async def _respond(work: Work, stream: bool | None) -> Response:
    if stream is False:
        told = [line async for line in work.lines()]
        return reply(told[-1])
    lines = work.lines()
    first = await anext(lines)  # what is wrong from the start has its own status
    return ndjson(json_lines(_from(first, lines)))


async def _from(first: Chunk, lines: AsyncGenerator[Chunk]) -> AsyncGenerator[Chunk]:
    async with aclosing(lines):
        yield first
        async for line in lines:
            yield line


def _no_path(name: str) -> str:
    """A name from outside, which must not mean a file or folder of this machine."""
    if parse_reference(name).kind == "path":
        raise StoreError(f"{name!r:.200} is a path; over HTTP only names of models are taken")
    return name


def _own_model(store: Store, name: str) -> None:
    """Check that ``name`` is a model that is here, and means the same to the store, which would take paths too."""
    found = store.resolve(name, paths=False)
    if store.resolve(name).path != found.path:
        raise StoreError(f"{name!r:.200} is a folder of this machine too; over HTTP only names of models are taken")


def _modelfile(body: fields.Create) -> Modelfile:
    """The request's settings as a Modelfile, still without its base."""
    kept, warnings, problems = params.read_json(body.parameters or {})
    if problems:
        raise UsageError("; ".join(problems))
    licenses = [body.license] if isinstance(body.license, str) else body.license or []
    messages = [{"role": message.role, "content": message.content or ""} for message in body.messages or []]
    if any(
        message["role"] == "tool" or given.tool_calls
        for message, given in zip(messages, body.messages or [], strict=True)
    ):
        raise UsageError("messages: a model can bring texts of system, user and assistant, not tool calls")
    return Modelfile(
        base="",
        parameters=kept,
        template=body.template,
        system=body.system,
        licenses=licenses,
        messages=messages,
        requires=body.requires,
        warnings=warnings,
    )


def _create(store: Store, body: fields.Create, modelfile: Modelfile, progress: Progress) -> None:
    for warning in modelfile.warnings:
        progress(f"warning: {warning}")
    with tempfile.TemporaryDirectory() as folder:  # empty but for links to blobs: no name can mean a file of ours
        base = body.from_ or _linked(store, Path(folder) / "model", body.files or {})
        adapters = [_linked(store, Path(folder) / "adapter", body.adapters)] if body.adapters else []
        text = write_modelfile(replace(modelfile, base=base, adapters=adapters))
        try:
            store.create(body.model, text, Path(folder), progress, check_template=check_template)
        except FormatError as error:  # what the client sent is wrong; where it lies here is not the client's matter
            raise UsageError(f"{error.where}: {error.problem}" if error.where else error.problem) from None


def _linked(store: Store, folder: Path, files: dict[str, str]) -> str:
    """A folder of links to blobs under the names that the client gives them; a lone GGUF is its blob itself."""
    blobs = store.library.blobs
    for name, digest in files.items():
        if not blobs.has(check_digest(digest)):
            raise NotFoundError(f"blob {digest} is not here; send it to /api/blobs/{digest} first")
        link = folder / check_file_name(name)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs.path(digest).resolve())
    if len(files) == 1:
        return str(blobs.path(next(iter(files.values()))).resolve())
    return str(folder)
