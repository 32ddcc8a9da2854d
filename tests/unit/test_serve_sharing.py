"""What names share in memory, and what happens to all of them when disks and engines fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes.tiny_llm import serving, tiny_app, tiny_folder, tiny_store
from tokenmill import LLM, SamplingParams
from tokenmill.core.errors import NotFoundError
from tokenmill.ops.batch_invariant import batch_invariant
from tokenmill.serve import manager as manager_module
from tokenmill.serve.entry import weights_of
from tokenmill.serve.errors import BrokenModelError
from tokenmill.serve.manager import ModelManager
from tokenmill.serve.settings import ServerSettings
from tokenmill.serve.worker import Worker
from tokenmill.store import ModelFiles, Store

GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """tiny, two Modelfiles of it, one of them with a context of its own, and a model that shares nothing."""
    store = tiny_store(tmp_path)
    store.create("pirate", "FROM tiny\nSYSTEM Arr.\nPARAMETER temperature 0.25", tmp_path)
    store.create("short", "FROM tiny\nPARAMETER num_ctx 64", tmp_path)
    store.create("other", f"FROM {tiny_folder(tmp_path / 'other-model')}", tmp_path)
    return store


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names whose weights get loaded."""
    names: list[str] = []

    def load(files: Any, **options: Any) -> LLM:
        names.append(files.name)
        return LLM(files, **options)

    monkeypatch.setattr(manager_module, "LLM", load)
    return names


def managed(store: Store, test: Callable[[ModelManager], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def run() -> None:
        manager = ModelManager(store, ServerSettings(dtype="float32", **settings))
        try:
            await asyncio.wait_for(test(manager), 60)
        finally:
            await manager.close()

    asyncio.run(run())


async def answer(worker: Worker) -> list[int]:
    return (await worker.submit([[5, 6, 7]], GREEDY).complete())[0].token_ids


def names(manager: ModelManager) -> list[str]:
    return sorted(model.name for model in manager.loaded())


def test_modelfiles_of_one_model_share_weights_engine_and_memory(store: Store, loads: list[str]) -> None:
    size = store.resolve("tiny").size

    async def ask(manager: ModelManager) -> None:
        tiny, pirate, short = [await manager.open(name) for name in ("tiny", "pirate", "short")]
        assert loads == ["tiny:latest"]
        assert pirate.thread is tiny.thread
        assert (pirate.llm.files.system, pirate.llm.default_params.temperature) == ("Arr.", 0.25)
        assert (tiny.llm.files.system, tiny.llm.default_params.temperature) == (None, 0.8)
        assert short.llm.model is tiny.llm.model
        assert (short.llm.ctx_size, tiny.llm.ctx_size) == (64, 512)
        assert short.thread is not tiny.thread
        assert names(manager) == ["pirate:latest", "short:latest", "tiny:latest"]
        assert len({tuple(await answer(worker)) for worker in (tiny, pirate, short)}) == 1
        await manager.open("other")  # one place, which all names of the first model leave together
        assert names(manager) == ["other:latest"]

    managed(store, ask, max_models=1, memory_limit=int(1.5 * size))


def test_a_name_that_is_stopped_leaves_the_engine_to_the_others(store: Store) -> None:
    async def ask(manager: ModelManager) -> None:
        tiny, pirate = await manager.open("tiny"), await manager.open("pirate")
        expected = await answer(pirate)
        await manager.unload("tiny")
        assert names(manager) == ["pirate:latest"]
        assert await answer(pirate) == expected
        await manager.unload("pirate")
        assert not tiny.alive

    managed(store, ask)


def test_joining_while_the_first_name_is_unloaded_gets_an_engine_that_runs(store: Store) -> None:
    async def ask(manager: ModelManager) -> None:
        for _ in range(5):
            await manager.open("tiny")
            joined, _ = await asyncio.gather(manager.open("pirate"), manager.unload("tiny"))
            assert len(await answer(joined)) == 4
            await manager.unload("pirate")

    managed(store, ask)


def test_weights_with_different_adapters_are_different(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base.gguf", tmp_path / "adapter.gguf"
    for path in (base, adapter):
        path.write_bytes(b"GGUF")
    (tmp_path / "link.gguf").symlink_to(base)
    plain, linked, adapted = (
        ModelFiles(name="a", path=base),
        ModelFiles(name="b", path=tmp_path / "link.gguf"),
        ModelFiles(name="c", path=base, adapters=[adapter]),
    )
    assert weights_of(plain) == weights_of(linked) != weights_of(adapted)


def vanish(store: Store, tmp_path: Path) -> None:
    """The disk with the store and the models' files is gone."""
    for path in (store.root, tmp_path / "tiny-model", tmp_path / "other-model"):
        path.rename(path.with_name(path.name + "-elsewhere"))


def test_a_loaded_model_outlives_its_disk(store: Store, tmp_path: Path) -> None:
    async def ask(manager: ModelManager) -> None:
        tiny = await manager.open("tiny")
        expected = await answer(tiny)
        vanish(store, tmp_path)
        for name in ("tiny", "tiny:latest", "TINY"):
            assert await answer(await manager.open(name)) == expected
        with pytest.raises(NotFoundError):
            await manager.open("other")
        await manager.unload("tiny")
        with pytest.raises(NotFoundError):
            await manager.open("tiny")

    managed(store, ask)


def test_ps_and_metrics_of_names_that_share_outlive_the_disk(store: Store, tmp_path: Path) -> None:
    with serving(tiny_app(tmp_path, store=store)) as url:
        for name in ("tiny", "pirate"):
            assert say(url, name).status_code == 200
        before = httpx.get(f"{url}/api/ps").json()["models"]
        vanish(store, tmp_path)
        after = httpx.get(f"{url}/api/ps").json()["models"]
        assert sorted(row["name"] for row in after) == ["pirate:latest", "tiny:latest"]
        assert [row["details"] for row in after] == [row["details"] for row in before]
        running = [
            line for line in httpx.get(f"{url}/metrics").text.splitlines() if line.startswith("vllm:num_requests_run")
        ]
        assert running == ['vllm:num_requests_running{model_name="pirate:latest"} 0.0']
        assert say(url, "pirate").status_code == 200
        assert say(url, "other").status_code == 404


def test_a_model_whose_file_alone_is_gone_says_so_without_its_path(store: Store, tmp_path: Path) -> None:
    async def ask(manager: ModelManager) -> None:
        await manager.open("tiny")
        (tmp_path / "tiny-model" / "model.safetensors").unlink()
        (tmp_path / "other-model" / "model.safetensors").unlink()
        await manager.open("tiny")
        with pytest.raises(BrokenModelError) as caught:
            await manager.open("other")
        assert str(tmp_path) not in str(caught.value)

    managed(store, ask)


def test_a_name_that_was_removed_is_not_answered_from_memory(store: Store) -> None:
    async def ask(manager: ModelManager) -> None:
        await manager.open("pirate")
        store.remove("pirate")
        with pytest.raises(NotFoundError):
            await manager.open("pirate")

    managed(store, ask)


def say(url: str, model: str) -> httpx.Response:
    body = {"model": model, "prompt": "the cat", "max_tokens": 4, "temperature": 0}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60)


@pytest.mark.parametrize("fault", [RuntimeError("planted"), SystemExit(1), MemoryError()], ids=repr)
def test_a_killed_engine_leaves_the_server_answering(store: Store, tmp_path: Path, fault: BaseException) -> None:
    app = tiny_app(tmp_path, store=store)
    with serving(app) as url:
        expected = say(url, "tiny").json()["choices"][0]["text"]
        assert say(url, "other").status_code == 200
        [tiny] = [one.worker for one in app.state.manager.loaded() if one.name == "tiny:latest"]

        def planted(now: float) -> Any:
            raise fault

        tiny.llm.engine.scheduler.schedule = planted
        failed = say(url, "tiny")
        assert failed.status_code == 503
        assert "the engine failed" in failed.text
        health = httpx.get(f"{url}/health")
        assert (health.status_code, health.json()["faults"]) == (503, ["an engine has stopped"])
        assert httpx.get(f"{url}/health/live").status_code == 200
        assert say(url, "other").status_code == 200
        assert say(url, "tiny").json()["choices"][0]["text"] == expected
        assert httpx.get(f"{url}/health").status_code == 200


def test_an_engine_that_cannot_be_started_again_says_why(store: Store, tmp_path: Path) -> None:
    app = tiny_app(tmp_path, store=store)
    with serving(app) as url:
        say(url, "tiny")
        say(url, "other")
        [tiny] = [one.worker for one in app.state.manager.loaded() if one.name == "tiny:latest"]
        tiny.llm.engine.scheduler.schedule = lambda now: 1 // 0
        assert say(url, "tiny").status_code == 503
        (tmp_path / "tiny-model" / "model.safetensors").unlink()
        refused = say(url, "tiny")
        assert refused.status_code == 500
        assert "'tiny" in refused.text
        assert "cannot be used" in refused.text
        assert str(tmp_path) not in refused.text
        assert say(url, "other").status_code == 200


def test_a_client_may_stand_back_but_not_push_ahead(store: Store, tmp_path: Path) -> None:
    with serving(tiny_app(tmp_path, store=store)) as url:
        body = {"model": "tiny", "prompt": "the cat", "max_tokens": 1}
        assert httpx.post(f"{url}/v1/completions", json=body | {"priority": 5}, timeout=60).status_code == 200
        refused = httpx.post(f"{url}/v1/completions", json=body | {"priority": -1}, timeout=60)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "priority")


def test_a_deterministic_server_loads_deterministic_engines(store: Store) -> None:
    async def ask(manager: ModelManager) -> None:
        for name in ("tiny", "short"):
            worker = await manager.open(name)
            assert worker.llm.engine._how is batch_invariant
            assert len(await answer(worker)) == 4

    managed(store, ask, deterministic=True)
