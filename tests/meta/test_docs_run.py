"""Every shell and Python block of README, CONTRIBUTING and docs is executed, in order, one folder a document.

A block that cannot be run in a test (it installs, or never ends) carries the reason in a comment right above it:

    <!-- not run: installs packages -->
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if path.exists()]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))

BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>\n]*?) -->\n)?^```(?P<kind>\w*)[^\n]*\n(?P<code>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    kind: str
    code: str
    line: int
    reason: str | None


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a document that hold code for a shell or for Python."""
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        if match["kind"] in ("bash", "sh", "shell", "console", "python", "py"):
            found.append(Block(match["kind"], match["code"], line, match["reason"]))
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_blocks_run(document: Path, tmp_path: Path, model_home: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "TOKENMILL_HOME": str(model_home), "PATH": path}
    for block in blocks(document.read_text(encoding="utf-8")):
        if block.reason:
            continue
        python = block.kind in ("python", "py")
        command = [sys.executable, "-c", block.code] if python else ["bash", "-euo", "pipefail", "-c", block.code]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        where = f"{document.relative_to(ROOT)}:{block.line}"
        assert done.returncode == 0, f"{where} ends with {done.returncode}\n{done.stdout}\n{done.stderr}"


def test_blocks_are_found() -> None:
    text = "a\n```bash\nls\n```\n<!-- not run: installs -->\n```bash\nmake\n```\n```\nplain\n```\n```python\n1\n```\n"
    assert [(b.kind, b.code, b.line, b.reason) for b in blocks(text)] == [
        ("bash", "ls\n", 3, None),
        ("bash", "make\n", 7, "installs"),
        ("python", "1\n", 13, None),
    ]


def test_readme_has_blocks_to_run() -> None:
    found = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    assert sum(block.reason is None for block in found) >= 2
