"""The promises of CONTRIBUTING.md about the source itself: small rooms, said purposes, no foreign code run."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "tokenmill"
MODULES = sorted(SOURCE.rglob("*.py"))

MAX_MODULE, MAX_FAMILY, MAX_FUNCTION = 500, 150, 80

# Loading or running what came from outside: each of these has been a hole in some program that served models.
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {("torch", "load"), ("os", "system"), ("os", "popen"), ("yaml", "load"), ("yaml", "unsafe_load")}


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def declares_family(path: Path, text: str) -> bool:
    """Whether the module is a model family: one of ``models/`` that makes a ``Family``."""
    return path.parent.name == "models" and re.search(r"^\w+ = Family\(", text, re.MULTILINE) is not None


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def dangers(tree: ast.AST) -> Iterator[str]:
    """What FORBIDDEN_… and the dangerous keywords say of a module, as ``line: what``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]}
        elif isinstance(node, ast.Call):
            yield from _dangerous_call(node)
            continue
        else:
            continue
        yield from (f"{node.lineno}: import {name}" for name in names & FORBIDDEN_IMPORTS)


def _dangerous_call(node: ast.Call) -> Iterator[str]:
    called = node.func
    if isinstance(called, ast.Name) and called.id in FORBIDDEN_CALLS:
        yield f"{node.lineno}: {called.id}()"
    if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
        pair = (called.value.id, called.attr)
        if pair in FORBIDDEN_ATTRIBUTES:
            yield f"{node.lineno}: {'.'.join(pair)}()"
    for keyword in node.keywords:
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        if keyword.arg in ("shell", "allow_pickle", "trust_remote_code") and value is True:
            yield f"{node.lineno}: {keyword.arg}=True"
        if keyword.arg == "weights_only" and value is False:
            yield f"{node.lineno}: weights_only=False"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_is_a_small_room(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = text.count("\n")
    most = MAX_FAMILY if declares_family(path, text) else MAX_MODULE
    assert lines <= most, f"{lines} lines where {most} are allowed; split it by what changes together"
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions(tree) if f.end_lineno - f.lineno >= MAX_FUNCTION}
    assert not long, f"functions past {MAX_FUNCTION} lines: {long}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), "the module has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_runs_nothing_foreign(path: Path) -> None:
    assert list(dangers(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "import torch\ntorch.load('x')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import os\nos.system('ls')",
        "f(weights_only=False)",
    ],
)
def test_the_check_for_foreign_code_sees(code: str) -> None:
    assert list(dangers(ast.parse(code)))


def test_the_check_for_foreign_code_knows_evaluation_mode() -> None:
    assert not list(dangers(ast.parse("model.eval()\nre.compile('x')\nsubprocess.run(['ls'])")))


def test_no_path_of_one_machine() -> None:
    """No committed file names this checkout's folder, and outside of the tests, whose attacks make paths up, none names
    anybody's home."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    someones_home = re.compile(r"(?<![\w.])/(?:root|home/\w+|Users/\w+)/")
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".sh", ""}:
            for line in path.read_text(encoding="utf-8", errors="ignore").splitlines():
                if f"{ROOT}/" in line or (not name.startswith("tests/") and someones_home.search(line)):
                    found.append(f"{name}: {line.strip()}")
    assert not found


def test_family_files_are_recognised() -> None:
    """Else the limit for families would hold for nothing."""
    found = [path.stem for path in MODULES if declares_family(path, path.read_text(encoding="utf-8"))]
    assert {"llama", "qwen3", "gpt2"} <= set(found)


def test_structure_names_every_package() -> None:
    page = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+)/`", page))
    packages = {path.parent.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("__init__.py")} - {"."}
    assert packages - named == set(), "packages that docs/structure.md does not name"
    assert {name for name in named if not (SOURCE / name).is_dir() and not (ROOT / name).is_dir()} == set()
