"""Bugs as people make them: one small change of a program's text, found through its syntax tree.

The change is made in the text, so that comments and layout stay and nothing else gives it away.

Example:
    found = mutations("def least(a, b):\n    return a if a < b else b\n")
    print(found[0].kind, apply("...", found[:1]))
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from turnwise.envs.builtin.mutate_kinds import KINDS, Site, Source
from turnwise.envs.builtin.python_source import parse


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change: the bytes `start` to `end` of the source (UTF-8) become `new`."""

    kind: str
    """A name in `KINDS`."""
    start: int
    end: int
    new: str
    line: int
    """Where it is, counted from 1."""
    function: str
    """Qualified name of the function that holds it; empty at the top of the module."""


def mutations(source: str, kinds: Sequence[str] = tuple(KINDS)) -> list[Mutation]:
    """Return every change of these kinds that `source` offers; see `compiles` before one is used.

    Nothing is offered in docstrings, annotations, decorators, f-strings, tests of
    `__name__` and type-checking blocks. In the order of the text; the same in every process.

    Raises:
        SyntaxError: `source` is not Python.
        KeyError: there is no such kind.
    """
    text = Source(source)
    found: dict[tuple[int, int, str], Mutation] = {}
    for site in _sites(parse(source), text):
        for kind in kinds:
            for start, end, new in KINDS[kind](site):
                line = text.line_of(start)
                made = Mutation(kind, start, end, new, line, site.function)
                found.setdefault((start, end, new), made)
    return sorted(found.values(), key=lambda m: (m.start, m.end, m.kind, m.new))


def apply(source: str, changes: Sequence[Mutation]) -> str:
    """Return `source` with the changes made.

    Raises:
        ValueError: two of them overlap.
    """
    data, end = source.encode(), len(source.encode()) + 1
    for change in sorted(changes, key=lambda m: -m.start):
        if change.end > end:
            raise ValueError(f"two mutations overlap at line {change.line}; choose others")
        data, end = data[: change.start] + change.new.encode() + data[change.end :], change.start
    return data.decode()


def compiles(source: str) -> bool:
    """Whether `source` is Python."""
    try:
        parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _sites(tree: ast.Module, text: Source) -> Iterator[Site]:
    """Yield every node that may be changed, with what the operators must know about it."""
    yield from _within(tree, Site(tree, text, "", (), tree, alone=False))


def _within(node: ast.AST, around: Site) -> Iterator[Site]:
    for field, value in ast.iter_fields(node):
        if field in _SKIPPED_FIELDS:
            continue
        children = value if isinstance(value, list) else [value]
        for index, child in enumerate(children):
            if not isinstance(child, ast.AST) or _is_fixed(child, index, field):
                continue
            alone = field in ("body", "orelse", "finalbody") and len(children) == 1
            site = Site(child, around.text, around.function, around.names, node, alone=alone)
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                site = site.inside(child)
            yield site
            yield from _within(child, site)


_SKIPPED_FIELDS = {"annotation", "returns", "decorator_list", "type_params", "bases"}


def _is_fixed(node: ast.AST, index: int, field: str) -> bool:
    """Whether nothing in `node` is to be changed."""
    if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Global | ast.Nonlocal):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return isinstance(node.value.value, str)
    if isinstance(node, ast.If):
        test = ast.unparse(node.test)
        return "__name__" in test or "TYPE_CHECKING" in test
    return isinstance(node, ast.Assign) and _is_dunder(node.targets[0])


def _is_dunder(target: ast.AST) -> bool:
    return isinstance(target, ast.Name) and target.id.startswith("__")
