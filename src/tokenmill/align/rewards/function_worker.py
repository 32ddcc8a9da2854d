"""The process of a reward function: ``python -m tokenmill.align.rewards.function_worker FILE FUNCTION``.

Lines of JSON: on stdin a list of samples, on stdout ``{"scores": […]}`` or ``{"error": "…"}``; the first line says
whether the function was found. What the function prints goes to stderr.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenmill.align.rewards.base import Sample


def load(file: str, name: str) -> Callable[[list[Sample]], Any]:
    """The function of a person's own file."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(Path(file).resolve().parent))
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found):
        raise AttributeError(f"{file} has no function {name}")
    return found


def answer(function: Callable[[list[Sample]], Any], line: str) -> dict[str, Any]:
    """What becomes of one call."""
    samples = [Sample(**one) for one in json.loads(line)]
    try:
        scores = list(function(samples))
        if len(scores) != len(samples):
            return {"error": f"{len(scores)} scores for {len(samples)} samples"}
        return {"scores": [_plain(score) for score in scores]}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:400]}


def _plain(score: Any) -> Any:
    """Numbers of numpy and torch as Python's; what is none stays what it says it is."""
    if score is None or isinstance(score, bool | int | float):
        return score
    return float(score) if hasattr(score, "__float__") else repr(score)[:200]


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        function = load(sys.argv[1], sys.argv[2])
        first: dict[str, Any] = {"scores": []}
    except BaseException as error:
        traceback.print_exc()
        first = {"error": f"{type(error).__name__}: {error}"[:400]}
    print(json.dumps(first), file=replies, flush=True)
    if "error" not in first:
        for line in sys.stdin:
            print(json.dumps(answer(function, line)), file=replies, flush=True)


if __name__ == "__main__":
    main()
