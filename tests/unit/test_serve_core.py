"""The server below the protocols: workers under load, faults and cancellation; which models stay in memory."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.tiny_llm import tiny_folder, tiny_store
from tokenmill import LLM, SamplingParams
from tokenmill.core.errors import NotFoundError, OutOfContextError, StoreError, UsageError
from tokenmill.engine import engine as engine_module
from tokenmill.engine.scheduler import DeadlineError, QueueFullError
from tokenmill.serve import manager as manager_module
from tokenmill.serve.errors import BrokenModelError, UnavailableError
from tokenmill.serve.manager import ModelManager
from tokenmill.serve.settings import ServerSettings
from tokenmill.serve.worker import Worker
from tokenmill.store import Store

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def llm(store: Store) -> LLM:
    return LLM("tiny", store=store, dtype="float32")


@pytest.fixture
def worker(llm: LLM) -> Iterator[Worker]:
    worker = Worker(llm, max_queue=32).start()
    yield worker
    worker.close()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("this never came true")


async def outcome(work: Awaitable[Any]) -> Any:
    try:
        return await work
    except Exception as error:
        return error


def test_64_streams_end_in_a_full_answer_or_a_refusal_and_none_is_mixed_up(llm: LLM) -> None:
    prompts = [llm.tokenizer.encode(f"the cat number {number} sat") for number in range(64)]
    alone = [llm.generate(llm.tokenizer.decode(ids), GREEDY).token_ids for ids in prompts]
    worker = Worker(llm, max_queue=32)  # not started yet: the burst comes before the first step

    async def one(ids: list[int]) -> list[int]:
        pieces = [piece async for piece in worker.submit([ids], GREEDY)]
        assert [piece.finish_reason is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        return [token for piece in pieces for token in piece.token_ids]

    async def burst() -> list[Any]:
        asyncio.get_running_loop().call_later(0.05, worker.start)
        return await asyncio.gather(*(outcome(one(ids)) for ids in prompts))

    thread = worker.thread._thread
    thread.is_alive = lambda: True  # type: ignore[method-assign]  # submitting asks whether it runs
    results = asyncio.run(burst())
    del thread.is_alive
    refused = [result for result in results if isinstance(result, QueueFullError)]
    assert len(refused) == 32
    assert all(got == wanted for got, wanted in zip(results, alone, strict=True) if got not in refused)
    assert not worker.busy
    worker.close()
    llm.engine.check_idle()


def test_a_cancelled_answer_gives_its_blocks_back(worker: Worker) -> None:
    async def leave() -> None:
        ticket = worker.submit([[5, 6, 7]], LONG)
        await anext(ticket)
        assert worker.llm.engine.pool.used > 0
        ticket.cancel()
        await until(lambda: not worker.busy)
        assert [piece.finish_reason async for piece in ticket][-1] == "abort"

    asyncio.run(leave())
    worker.llm.engine.check_idle()


def test_a_cancelled_caller_of_complete_cancels_the_work(worker: Worker) -> None:
    async def leave() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.submit([[5, 6, 7]] * 3, LONG).complete(), 0.05)
        await until(lambda: not worker.busy)

    asyncio.run(leave())
    worker.llm.engine.check_idle()


class BrokenGuide:
    """Fails as no grammar should, at its third token."""

    stopped = False
    seen = 0

    def mask(self) -> Any:
        self.seen += 1
        if self.seen == 3:
            raise ZeroDivisionError("planted")
        import numpy as np

        return np.ones(320, dtype=bool)

    def accept(self, token_id: int) -> None: ...


def test_a_fault_in_one_request_leaves_the_others(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    free = worker.llm.generate("the cat", GREEDY).token_ids
    ids = worker.llm.tokenizer.encode("the cat")
    plain = worker.llm.requests

    def planted(prompts: Any, params: Any, format: Any, **more: Any) -> Any:
        requests = plain(prompts, params, None, **more)
        if format:
            requests[0].guide = BrokenGuide()
        return requests

    monkeypatch.setattr(worker.llm, "requests", planted)

    async def both() -> list[Any]:
        tickets = [worker.submit([ids], GREEDY, format=format) for format in ("json", None)]
        return [await outcome(ticket.complete()) for ticket in tickets]

    broken, fine = asyncio.run(both())
    assert "ZeroDivisionError: planted" in str(broken)
    assert fine[0].token_ids == free
    assert worker.alive


def test_a_pass_that_fails_for_one_prompt_leaves_the_others(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    run = engine_module.run

    def failing(model: Any, cache: Any, work: Any) -> Any:
        if any(piece.sequence.request.prompt == [9, 9, 9] for piece in work):
            raise RuntimeError("planted")
        return run(model, cache, work)

    monkeypatch.setattr(engine_module, "run", failing)

    async def both() -> list[Any]:
        tickets = [worker.submit([ids], GREEDY) for ids in ([9, 9, 9], [5, 6])]
        return [await outcome(ticket.complete()) for ticket in tickets]

    broken, fine = asyncio.run(both())
    assert "planted" in str(broken)
    assert len(fine[0].token_ids) == 8


def test_a_private_cache_is_not_shared_between_clients(llm: LLM) -> None:
    prompt = [7, 8, 9] * 20

    async def cached(worker: Worker) -> list[int]:
        return [
            (await worker.submit([prompt], GREEDY, client=client).complete())[0].stats.cached_tokens
            for client in ("ada", "bob", "ada")
        ]

    for private, bobs in ((True, 0), (False, 48)):
        llm.engine.pool.clear_cache()
        worker = Worker(llm, private_cache=private).start()
        assert asyncio.run(cached(worker)) == [0, bobs, 48]
        worker.close()


def test_one_of_several_answers_may_fail_alone(worker: Worker) -> None:
    async def late() -> Any:
        params = SamplingParams(n=2, max_tokens=500, ignore_eos=True)
        return await worker.submit([[5]], params, deadline=time.monotonic()).complete()

    choices = asyncio.run(late())[0].choices
    assert [(choice.index, choice.finish_reason) for choice in choices] == [(0, "error"), (1, "error")]
    assert all(isinstance(choice.error, DeadlineError) for choice in choices)


def test_no_tokens_asked_is_an_answer(worker: Worker) -> None:
    async def ask() -> Any:
        return await worker.submit([[5], [6]], SamplingParams(max_tokens=0)).complete()

    assert [(c.token_ids, c.finish_reason) for c in asyncio.run(ask())] == [([], "length")] * 2


def test_what_can_never_be_answered_is_refused_at_once(worker: Worker) -> None:
    async def ask(prompts: list[list[int]], params: SamplingParams = GREEDY) -> None:
        worker.submit(prompts, params)

    for prompts, error in (
        ([[5] * 600], OutOfContextError),
        ([[]], UsageError),
        ([[999]], UsageError),
        ([], UsageError),
    ):
        with pytest.raises(error):
            asyncio.run(ask(prompts))
    with pytest.raises(UsageError, match="more than this server takes"):
        asyncio.run(ask([[5]] * 100, SamplingParams(n=128)))
    assert not worker.busy


def test_other_work_runs_on_the_same_thread_and_its_errors_come_back(worker: Worker) -> None:
    def fail() -> None:
        raise UsageError("no")

    async def ask() -> None:
        assert (await worker.call(threading.current_thread)).name.startswith("engine")
        with pytest.raises(UsageError, match="no"):
            await worker.call(fail)

    asyncio.run(ask())
    assert not worker.busy


def test_closing_ends_what_runs_with_a_reason(llm: LLM) -> None:
    worker = Worker(llm).start()

    async def ask() -> None:
        ticket = worker.submit([[5]], LONG)
        await anext(ticket)
        await asyncio.to_thread(worker.close)
        with pytest.raises(UnavailableError, match="unloaded"):
            await ticket.complete()
        with pytest.raises(UnavailableError):
            worker.submit([[5]], GREEDY)
        with pytest.raises(UnavailableError):
            await worker.call(time.time)

    asyncio.run(ask())
    assert not worker.alive
    llm.engine.step()  # drops what was aborted, for the next test


def managed(store: Store, test: Callable[[ModelManager], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def run() -> None:
        manager = ModelManager(store, ServerSettings(dtype="float32", **settings))
        try:
            await asyncio.wait_for(test(manager), 60)
        finally:
            await manager.close()
        assert manager.loaded() == []

    asyncio.run(run())


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that get loaded."""
    names: list[str] = []

    def load(files: Any, **options: Any) -> LLM:
        names.append(files.name)
        return LLM(files, **options)

    monkeypatch.setattr(manager_module, "LLM", load)
    return names


@pytest.fixture
def three(tmp_path: Path) -> Store:
    """tiny, its alias copy, and two models with other weights."""
    store = tiny_store(tmp_path)
    store.copy("tiny", "copy")
    for name in ("brief", "brisk"):
        store.create(name, f"FROM {tiny_folder(tmp_path / name)}\nSYSTEM Be {name}.", tmp_path)
    return store


def test_a_model_is_loaded_once_for_all_who_ask_and_for_its_aliases(three: Store, loads: list[str]) -> None:
    async def ask(manager: ModelManager) -> None:
        workers = await asyncio.gather(*(manager.open(name) for name in ("tiny", "tiny", "copy", "tiny:latest")))
        assert len({id(worker.llm.engine) for worker in workers}) == 1
        assert len(loads) == 1

    managed(three, ask)


def test_the_least_recently_used_model_goes_and_a_busy_one_stays(three: Store, loads: list[str]) -> None:
    async def ask(manager: ModelManager) -> None:
        for name in ("tiny", "brief", "tiny", "brisk"):
            await manager.open(name)
        assert {model.name for model in manager.loaded()} == {"tiny:latest", "brisk:latest"}
        with manager.scope():
            tiny = await manager.open("tiny")
            await manager.open("brisk")
            waiting = asyncio.create_task(manager.open("brief"))
            await asyncio.sleep(0.2)
            assert not waiting.done(), "both are in use"
            assert tiny.alive
        await waiting
        assert {model.name for model in manager.loaded()} == {"brisk:latest", "brief:latest"}
        assert not tiny.alive

    managed(three, ask, max_models=2)


def test_two_models_that_want_one_place_both_get_it(three: Store) -> None:
    async def ask(manager: ModelManager) -> None:
        async def once(name: str) -> None:
            with manager.scope():
                worker = await manager.open(name)
                assert (await worker.submit([[5]], GREEDY).complete())[0].finish_reason == "length"

        await asyncio.gather(*(once(name) for name in ("tiny", "brief", "tiny", "brisk")))

    managed(three, ask, max_models=1)


def test_an_idle_model_goes_after_keep_alive_and_an_answering_one_does_not(three: Store) -> None:
    async def ask(manager: ModelManager) -> None:
        with manager.scope():
            worker = await manager.open("tiny", keep_alive=0)
            await asyncio.sleep(0.2)
            assert len((await worker.submit([[5]], GREEDY).complete())[0].token_ids) == 8
        await until(lambda: not manager.loaded())
        await manager.open("tiny", keep_alive=0.2)
        assert manager.loaded()[0].expires_at is not None
        await until(lambda: not manager.loaded())
        await manager.open("tiny", keep_alive=-1)
        assert manager.loaded()[0].expires_at is None

    managed(three, ask)


def test_unload_waits_for_the_answer(three: Store) -> None:
    async def ask(manager: ModelManager) -> None:
        with manager.scope():
            worker = await manager.open("tiny")
            await manager.unload("tiny")
            assert len((await worker.submit([[5]], GREEDY).complete())[0].token_ids) == 8
        await until(lambda: not manager.loaded())
        with pytest.raises(NotFoundError, match="not loaded"):
            await manager.unload("tiny")

    managed(three, ask)


def test_an_engine_that_failed_says_so_and_is_replaced(
    three: Store, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(manager: ModelManager) -> None:
        worker = await manager.open("tiny")
        with monkeypatch.context() as planted:
            planted.setattr(worker.llm.engine.scheduler, "schedule", lambda now: 1 // 0)
            results = await asyncio.gather(*(outcome(worker.submit([[5]], GREEDY).complete()) for _ in range(3)))
        assert all(isinstance(result, UnavailableError) for result in results)
        assert manager.faults() == ["an engine has stopped"]
        again = await manager.open("tiny")
        assert (again is not worker, len(loads)) == (True, 2)
        assert manager.faults() == []
        assert (await again.submit([[5]], GREEDY).complete())[0].finish_reason == "length"

    managed(three, ask)


def test_a_load_that_fails_fails_for_its_callers_only(three: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(manager: ModelManager) -> None:
        def load(files: Any, **options: Any) -> LLM:
            if files.name.startswith("brief"):
                raise OSError("the disk is gone")
            return LLM(files, **options)

        monkeypatch.setattr(manager_module, "LLM", load)
        results = await asyncio.gather(*(outcome(manager.open(name)) for name in ("brief", "brief", "tiny")))
        assert [type(result) for result in results] == [BrokenModelError, BrokenModelError, Worker]

    managed(three, ask)


def test_a_client_that_leaves_during_a_load_does_not_take_it_from_the_others(three: Store, loads: list[str]) -> None:
    async def ask(manager: ModelManager) -> None:
        first, second = (asyncio.create_task(manager.open("tiny")) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        assert (await second).alive
        assert len(loads) == 1

    managed(three, ask)


def test_only_names_of_this_machine_are_opened(three: Store, tmp_path: Path) -> None:
    async def ask(manager: ModelManager) -> None:
        for name, error in (
            ("nobody/has:this", NotFoundError),
            ("smollm2:135m", NotFoundError),  # in the catalog: a request must not download it
            (str(tmp_path / "tiny-model"), StoreError),
            ("../../etc", StoreError),
            ("a\x00b", StoreError),
        ):
            with pytest.raises(error):
                await manager.open(name)

    managed(three, ask)


def test_models_named_at_the_start_are_kept_and_their_paths_stay_unsaid(three: Store, tmp_path: Path) -> None:
    async def ask() -> None:
        given = [three.resolve(str(tmp_path / "tiny-model")), three.resolve("brief")]
        manager = ModelManager(three, ServerSettings(dtype="float32", keep_alive=0), models=given)
        for name in ("tiny-model", "brief", "tiny"):
            await manager.open(name)
        await until(lambda: len(manager.loaded()) == 2)
        assert [model.name for model in manager.loaded()] == ["brief:latest", "tiny-model"]
        assert manager.resolve("./tiny-model").path == manager.resolve("/elsewhere/tiny-model").path == given[0].path
        with pytest.raises(StoreError, match="is a path"):
            manager.resolve("./tiny-model/../brief")
        names = [files.name for files in manager.models()]
        assert sorted(names) == ["brief:latest", "brisk:latest", "copy:latest", "tiny-model", "tiny:latest"]
        await manager.unload("brief:latest")
        await manager.close()

    asyncio.run(ask())


def test_two_models_of_one_name_are_not_one(three: Store, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "tiny-model", tmp_path / "other" / "tiny-model")
    given = [three.resolve(str(tmp_path / "tiny-model")), three.resolve(str(tmp_path / "other" / "tiny-model"))]
    with pytest.raises(UsageError, match="same name"):
        ModelManager(three, ServerSettings(), models=given)


def test_a_model_over_the_memory_limit_is_refused(three: Store) -> None:
    async def ask(manager: ModelManager) -> None:
        with pytest.raises(UsageError, match="memory limit"):
            await manager.open("tiny")

    managed(three, ask, memory_limit=1000)
