"""What a mend of a repository may add: names and attributes that are known to be harmless.

The tests of a repository run in one process with the code that they test, and Python has no wall
within a process. So it is a list of what is allowed, not of what is denied: public methods of the
plain types, the attributes that the clean folder uses, the builtins that compute. Everything else
(underscores, imports, classes, decorators, attributes that are set, frames, names that lead to
the interpreter) is allowed only as the clean text of that very module has it.

What this guarantees: no text that passes reads an attribute or a builtin that is not on the lists.
What it does not: a module that itself uses `getattr`, `eval` or `sys` in a certain way gives the
agent that way; and a mend that tells the tests' inputs apart is a wrong mend which only a test
that the agent cannot read finds out. For code that nobody wants to trust, use `Repair`: its judge
is on the other side of the box's wall.
"""

from __future__ import annotations

import ast
import builtins
import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from string import Formatter

from turnwise.envs.builtin.python_source import parse

_PLAIN = (str, list, dict, set, frozenset, tuple, int, float, complex, bool, bytes, bytearray)
METHODS = frozenset(
    name for kind in _PLAIN for name in dir(kind) if name[0] != "_" and "format" not in name
) | {"args", "start", "stop", "step"}
"""Attributes that every mend may use: public ones of plain values, of errors and of ranges."""

_BUILTINS = """
    abs all any ascii bin bool bytearray bytes callable chr complex dict divmod enumerate filter
    float frozenset hash hex int isinstance issubclass iter len list map max min next oct ord pow
    range repr reversed round set slice sorted str sum tuple zip True False None Ellipsis
    NotImplemented
"""
BUILTINS = frozenset(_BUILTINS.split()) | {
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, Exception)
}
"""Builtins that every mend may use: those that compute, and the errors."""

_DENIED = """
    os sys unittest pytest inspect gc ctypes builtins signal threading subprocess importlib
    modules abort kill killpg fork settrace setprofile format format_map attrgetter methodcaller
    SkipTest writev close dup dup2 load_tests setUpModule tearDownModule with_traceback
"""
DENIED = frozenset(_DENIED.split()) | {n for n in dir(builtins) if n not in BUILTINS}
"""Names that lead out of a module: another module's use of one allows nothing."""

_INNER = re.compile(r"_|[a-z]{1,2}_(frame|code|back|globals|locals|builtins|await|yieldfrom|next)")
_COOKIE = re.compile(rb"#[^\n]*coding[:=]")
_COMPUTE = {"math": frozenset(dir(math)), "itertools": frozenset(dir(itertools))}
"""Modules of which every public name computes, and none is another module."""
_JUDGING = """
    __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __hash__ __bool__ __len__ __contains__ __getattr__
    __getattribute__ __instancecheck__ __subclasscheck__
"""
JUDGING = frozenset(_JUDGING.split())
"""Special methods by which a test compares; they stay as they are where no bug is in them."""


def objection(
    clean: str, edited: str, folder: Iterable[str] = (), broken: str | None = None
) -> str | None:
    """Return what `edited` adds to a module that it must not; None for nothing.

    Text that is not Python is not objected to: no test passes with it.

    Args:
        clean: the module without a bug.
        edited: what is to take its place.
        folder: the texts of all clean modules; their attributes may be used.
        broken: the module with a bug: what it has may stay, too, and the methods in `JUDGING`
            that it changes may be mended.
    """
    try:
        tree = parse(edited.encode())  # bytes, as Python reads a file: with its encoding
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    texts = (clean, broken or clean)  # ours, both of them
    own = {risk for text in texts for risk in _risks(text, parse(text), METHODS)}
    known = METHODS | {name for text in folder for name in attributes(text) if not _inner(name)}
    try:
        risks = [risk for risk in _risks(edited, tree, known) if risk not in own]
    except RecursionError:
        return "such deep nesting"
    return next(iter([*risks, *_rejudged(clean, broken or clean, tree)]), None)


@functools.lru_cache(maxsize=4096)
def attributes(text: str) -> frozenset[str]:
    """Return the attribute names that a module reads or sets."""
    nodes = ast.walk(parse(text))
    return frozenset(node.attr for node in nodes if isinstance(node, ast.Attribute))


def _rejudged(clean: str, broken: str, tree: ast.Module) -> list[str]:
    """Return the methods in `JUDGING` that are new, or changed though no bug is in them."""
    was, bad = _judging(parse(clean)), _judging(parse(broken))
    return [
        f"another {name}"
        for name, texts in _judging(tree).items()
        if was.get(name) == bad.get(name) and texts != was.get(name)
    ]


def _judging(tree: ast.Module) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in JUDGING:
            found.setdefault(node.name, []).append(ast.unparse(node))
    return found


def _inner(name: str) -> bool:
    """Whether a name is not one that a folder's other modules may lend."""
    return name in DENIED or _INNER.match(name) is not None or name.startswith("pytest_")


def _risks(text: str, tree: ast.Module, known: frozenset[str]) -> Iterator[str]:
    """Yield every use of something that is not harmless by itself, as text."""
    if _COOKIE.search(b"\n".join(text.encode().split(b"\n")[:2])):
        yield "an encoding"
    modules = {
        alias.asname or alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    yield from _Risks(known, modules).of(tree)


class _Risks:
    """Walks a module's tree.

    Args:
        known: attributes that may be read.
        modules: names that are modules: what is read from one must stand in the clean text.
    """

    def __init__(self, known: frozenset[str], modules: set[str]) -> None:
        self.known, self.modules = known, modules

    def of(self, node: ast.AST) -> Iterator[str]:
        """Yield the uses in `node` and in what it holds."""
        yield from self._at(node)
        held = [*ast.iter_child_nodes(node)]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            held = [] if node.value.id in self.modules else held
        elif isinstance(node, ast.Call) and self._plain_format(node):
            held = [*node.args, *node.keywords]
        for child in held:
            yield from self.of(child)

    def _at(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Global | ast.Nonlocal):
            yield ast.unparse(node)
        elif isinstance(node, ast.Name):
            if node.id in DENIED or node.id in self.modules or _is_hidden(node.id):
                yield node.id
        elif isinstance(node, ast.Attribute):
            yield from self._attribute(node)
        elif isinstance(node, ast.MatchClass):
            yield from (name for name in node.kwd_attrs if name not in self.known)
        elif isinstance(node, ast.ClassDef):
            yield from _class(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name in DENIED or _is_hidden(node.name) or node.name.startswith("pytest_"):
                yield f"def {node.name}"
            yield from (f"@{ast.unparse(one)}" for one in node.decorator_list)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "__" in node.value:
            yield repr(node.value)

    def _attribute(self, node: ast.Attribute) -> Iterator[str]:
        if not isinstance(node.ctx, ast.Load):
            yield f"{ast.unparse(node)} ="
        root = node.value.id if isinstance(node.value, ast.Name) else ""
        if root in self.modules:
            if node.attr.startswith("_") or node.attr not in _COMPUTE.get(root, ()):
                yield ast.unparse(node)
        elif node.attr not in self.known:
            yield node.attr

    @staticmethod
    def _plain_format(node: ast.Call) -> bool:
        """Whether it is `"...".format(...)` that reads no attributes and no items."""
        of = node.func
        if not (isinstance(of, ast.Attribute) and of.attr == "format"):
            return False
        text = of.value.value if isinstance(of.value, ast.Constant) else None
        return isinstance(text, str) and _is_flat(text)


def _is_flat(text: str) -> bool:
    try:
        fields = [(name or "", spec or "") for _, name, spec, _ in Formatter().parse(text)]
    except ValueError:
        return False
    return not any("." in name or "[" in name or "{" in spec for name, spec in fields)


def _is_hidden(name: str) -> bool:
    return name.startswith("_") and name != "_"


def _class(node: ast.ClassDef) -> Iterator[str]:
    """Yield a class's head, its statements and the heads of its special methods."""
    head = [*node.bases, *(one.value for one in node.keywords), *node.decorator_list]
    yield f"class {node.name} {' '.join(map(ast.unparse, head))}".strip()
    for part in node.body:
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            if part.name.endswith("__"):
                yield f"def {node.name}.{part.name}"
        elif not (isinstance(part, ast.Pass) or _is_text(part)):
            yield f"{node.name}: {ast.unparse(part)}"


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
