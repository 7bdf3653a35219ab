"""What `RepoRepair` takes of a folder: its files, the functions to put bugs into, its tests."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from turnwise.envs.builtin.mutate import Mutation, apply, compiles, mutations
from turnwise.envs.builtin.python_source import parse
from turnwise.envs.seeds import derive

LEFT_OUT = {"__pycache__", "node_modules", "venv", "build", "dist", "htmlcov"}
MAX_FILES, MAX_BYTES = 2000, 16 << 20
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MAX_MODULE = 200_000
"""Characters of a module that bugs are put into."""


def read_folder(folder: str) -> dict[str, bytes]:
    """Return path -> content of the files under a folder, without hidden ones and history.

    Links are not followed.

    Raises:
        ValueError: there is no such folder, no Python in it, or too much for a box.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"repo must be a folder, got {folder!r}")
    found: dict[str, bytes] = {}
    for place, folders, names in os.walk(root):
        folders[:] = sorted(n for n in folders if n[0] != "." and n not in LEFT_OUT)
        for name in sorted(names):
            path = Path(place) / name
            if (
                name[0] != "."
                and path.suffix != ".pyc"
                and path.is_file()
                and not path.is_symlink()
            ):
                found[path.relative_to(root).as_posix()] = path.read_bytes()
                _refuse_size(folder, found)
    if not any(path.endswith(".py") for path in found):
        raise ValueError(f"{folder!r} holds no Python files; give the folder of a package")
    return found


def _refuse_size(folder: str, files: Mapping[str, bytes]) -> None:
    if len(files) > MAX_FILES or sum(map(len, files.values())) > MAX_BYTES:
        raise ValueError(
            f"{folder!r} has more than {MAX_FILES} files or {MAX_BYTES >> 20} MiB; give a folder "
            "that holds the package and its tests only"
        )


def is_test(path: str) -> bool:
    """Whether a file belongs to the tests."""
    parts = PurePosixPath(path).parts
    name = parts[-1]
    return bool({"test", "tests", "testing"} & set(parts[:-1])) or (
        name.startswith("test_") or name.endswith("_test.py") or name in ("conftest.py", "setup.py")
    )


def modules(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return path -> text of the modules that bugs may be put into and that may be edited."""
    found: dict[str, str] = {}
    for path, data in files.items():
        if path.endswith(".py") and not is_test(path):
            try:
                text = data.decode()
            except UnicodeDecodeError:
                continue
            if len(text) <= MAX_MODULE and "\r" not in text and compiles(text):
                found[path] = text
    return found


def texts(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return path -> content of the files that are text."""
    found: dict[str, str] = {}
    for path, data in files.items():
        if len(data) <= MAX_MODULE and b"\0" not in data:
            found[path] = data.decode("utf-8", "replace")
    return found


def functions(sources: Mapping[str, str]) -> list[tuple[str, str, list[Mutation]]]:
    """Return (path, function, its mutations), all in an order that the texts decide."""
    found: dict[tuple[str, str], list[Mutation]] = {}
    for path, text in sources.items():
        for mutation in mutations(text):
            if mutation.function:
                found.setdefault((path, mutation.function), []).append(mutation)
    order = sorted(found, key=lambda key: derive("function", *key))
    return [(*key, _shuffled(sources[key[0]], found[key])) for key in order]


def _shuffled(source: str, found: list[Mutation]) -> list[Mutation]:
    """Kinds take turns, so that a few of the mutations are of many kinds."""
    by_kind: dict[str, list[Mutation]] = {}
    for mutation in sorted(found, key=lambda m: derive(m.start, m.end, m.new)):
        by_kind.setdefault(mutation.kind, []).append(mutation)
    rounds = max(map(len, by_kind.values()))
    turns = [by_kind[kind][i : i + 1] for i in range(rounds) for kind in sorted(by_kind)]
    return [m for turn in turns for m in turn if compiles(apply(source, [m]))]


def without_tests(source: str, names: set[str]) -> str:
    """Return a test file without the functions of these qualified names (`Class.method`)."""
    lines = source.splitlines(keepends=True)
    for first, last, alone in sorted(_spans(parse(source), "", names), reverse=True):
        blanks = lines[first - 1][: len(lines[first - 1]) - len(lines[first - 1].lstrip())]
        lines[first - 1 : last] = [f"{blanks}pass\n"] if alone else []
    text = "".join(lines)
    return text if compiles(text) else source


def _spans(node: ast.AST, prefix: str, names: set[str]) -> list[tuple[int, int, bool]]:
    """Return (first line, last line, whether its block would be empty) of each such function."""
    found: list[tuple[int, int, bool]] = []
    body = getattr(node, "body", [])
    for child in body if isinstance(body, list) else []:
        if isinstance(child, ast.ClassDef):
            found += _spans(child, f"{prefix}{child.name}.", names)
        elif isinstance(child, FUNCTIONS) and f"{prefix}{child.name}" in names:
            first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
            found.append((first, child.end_lineno or first, False))
    if found and len(found) == len(body) and prefix:
        found[0] = (*found[0][:2], True)
    return found
