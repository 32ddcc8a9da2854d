"""Answers of models as files in a folder, each named after everything that was asked: nothing is asked twice, and what
was stopped asks only for what is missing.

A file that is half, or of another version, counts as none. Two processes may share a folder: an answer appears whole or
not at all, and whoever writes it last wins.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenmill.core.paths import atomic_write


@dataclass(frozen=True)
class Answer:
    """What came back."""

    text: str
    finish_reason: str
    """``stop``, ``length``, … as the server says; ``refused`` if it would not take the question: then the text says
    why."""


class AnswerCache:
    """The answers below one folder, which need not be there yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, question: Mapping[str, Any]) -> Answer | None:
        """The answer to exactly this question."""
        path = self._path(question)
        try:
            return Answer(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            path.unlink(missing_ok=True)
            return None

    def put(self, question: Mapping[str, Any], answer: Answer) -> None:
        """Keep an answer."""
        with atomic_write(self._path(question)) as file:
            file.write(json.dumps(asdict(answer), ensure_ascii=True).encode())

    def _path(self, question: Mapping[str, Any]) -> Path:
        asked = json.dumps(question, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
        name = hashlib.sha256(asked).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.json"
