"""Choosing backends: the best that can, said once, forced where asked, refused by name."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from tokenmill.core.errors import UsageError
from tokenmill.ops.registry import Op, registered_ops, use_backend


@pytest.fixture
def op(request: pytest.FixtureRequest) -> Iterator[Op]:
    def doubled(x: int) -> str:
        return f"reference {x}"

    doubled.__name__ = f"doubled_{request.node.name}".replace("[", "_").replace("]", "")
    made = Op(doubled)
    made.backend("fast", lambda x: None if x < 10 else "x is too large")(lambda x: f"fast {x}")
    made.backend("slower")(lambda x: f"slower {x}")
    yield made
    del registered_ops()[made.name]


def test_first_that_can_is_used_and_named_once(op: Op, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert [op(1), op(2), op(20)] == ["fast 1", "fast 2", "slower 20"]
    said = [record.message for record in caplog.records if op.name in record.message]
    assert len(said) == 2
    assert "not fast: x is too large" in said[1]


def test_forcing(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    with use_backend("reference"):
        assert op(1) == "reference 1"
    with use_backend(**{op.name: "slower"}):
        assert op(1) == "slower 1"
    monkeypatch.setenv("TOKENMILL_BACKEND", f"{op.name}=slower")
    assert op(1) == "slower 1"
    with use_backend(**{op.name: "fast"}), pytest.raises(UsageError, match="too large"):
        op(20)


def test_unknown_names_are_refused(op: Op) -> None:
    with pytest.raises(UsageError, match="did you mean 'fast'"), use_backend(**{op.name: "fst"}):
        pass
    with pytest.raises(UsageError, match="no op is called"), use_backend(nonsense="fast"):
        pass
    with pytest.raises(UsageError, match="only 'reference'"), use_backend("fast"):
        pass


def test_forcing_stays_in_its_thread(op: Op) -> None:
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(op(1)))
        thread.start()
        thread.join()
    assert seen == ["fast 1"]
