"""The process of people's tools: ``python -m tokenmill.tools.worker PLACE…``, a place being ``FILE.py:function`` or
``module:function``.

Lines of JSON. The first one out has ``schemas``, or ``error`` where a function is not there; then every line in is
``{"name", "arguments"}`` and is answered with ``{"result": text}`` or ``{"error": text}``. What functions print goes to
stderr. It ends with its parent, even while a tool hangs.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenmill.tools.schema import function_schema

MOST_CHARACTERS = 1 << 18
"""Of a result; what is longer is cut here, before tokens are counted."""
_LOOK_S = 2.0
_SHOWN: set[str] = set()


def load(place: str) -> Callable[..., Any]:
    """The function at a place. ImportError, AttributeError: there is none."""
    source, _, name = place.rpartition(":")
    if source.endswith(".py"):
        file = Path(source).resolve()
        spec = importlib.util.spec_from_file_location(file.stem, file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{source} is no Python file")
        module = sys.modules.get(spec.name)
        if module is None or getattr(module, "__file__", None) != str(file):
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            sys.path.insert(0, str(file.parent))
            spec.loader.exec_module(module)
    else:
        sys.path.insert(0, os.getcwd())
        module = importlib.import_module(source)
    found: Callable[..., Any] | None = getattr(module, name, None)
    if found is None or not callable(found):
        raise AttributeError(f"{source} has no function {name}")
    return found


def answer(functions: dict[str, Callable[..., Any]], line: str) -> dict[str, str]:
    """What becomes of one call."""
    call = json.loads(line)
    try:
        value = functions[call["name"]](**call["arguments"])
        return {"result": text_of(asyncio.run(value) if inspect.iscoroutine(value) else value)}
    except Exception as error:
        if (seen := f"{call['name']} {type(error).__name__}") not in _SHOWN:
            _SHOWN.add(seen)  # once: a policy calls a broken tool thousands of times
            traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:400]}


def text_of(value: Any) -> str:
    """A result as the model reads it: text as it is, all else as JSON. ValueError where a number is none."""
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
        except ValueError as error:
            raise ValueError(f"a result is text, or JSON without nan and infinity: {error}") from error
    return str(value[:MOST_CHARACTERS])


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch as Python's; what is none as its text."""
    return value.item() if hasattr(value, "item") else str(value)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    first: dict[str, Any]
    functions: dict[str, Callable[..., Any]] = {}
    try:
        loaded = [load(place) for place in sys.argv[1:]]
        first = {"schemas": [function_schema(function) for function in loaded]}
        functions = {function.__name__: function for function in loaded}
    except BaseException as error:
        traceback.print_exc()
        first = {"error": f"{type(error).__name__}: {error}"[:400]}
    print(json.dumps(first), file=replies, flush=True)
    if functions:
        for line in sys.stdin:
            print(json.dumps(answer(functions, line)), file=replies, flush=True)


if __name__ == "__main__":
    main()
