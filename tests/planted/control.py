"""A megabyte of clean English: the documentation that CPython carries, without the lines that name people."""

from __future__ import annotations

import re
import sysconfig
from functools import cache
from pathlib import Path

_DOCSTRING = re.compile(r'^ *"""(.+?)"""$', re.DOTALL | re.MULTILINE)
_PEOPLE = re.compile(r"@\S+\.\w|[Cc]opyright|[Aa]uthor|[Ww]ritten")


@cache
def clean_text(characters: int) -> str:
    """The language reference (``pydoc_data``), then docstrings of the standard library, file by file, until there
    are so many characters."""
    from pydoc_data.topics import topics

    parts = list(topics.values())
    size = sum(map(len, parts))
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if size >= 1.1 * characters:
            break
        for said in _DOCSTRING.findall(file.read_text("utf-8")):
            parts.append(said)
            size += len(said)
    lines = "\n\n".join(parts).split("\n")
    return "\n".join(line for line in lines if not _PEOPLE.search(line))[:characters]
