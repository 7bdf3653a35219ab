"""The kinds of bugs: each function yields (start, end, new text) for one node of a program."""

from __future__ import annotations

import ast
import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

Change = tuple[int, int, str]
"""Byte offsets in the source, and what is to stand between them."""


class Source:
    """A program's text, and where the nodes of its tree are in it."""

    def __init__(self, source: str) -> None:
        self.data = source.encode()
        self.starts = [0]
        for line in self.data.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def start(self, node: ast.AST) -> int:
        """Return the offset of the node's first byte."""
        return self.starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]

    def end(self, node: ast.AST) -> int:
        """Return the offset after the node's last byte."""
        return self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def of(self, node: ast.AST) -> str:
        """Return the node's text."""
        return self.data[self.start(node) : self.end(node)].decode()

    def line_of(self, offset: int) -> int:
        """Return the number of the line that holds `offset`, from 1."""
        return bisect.bisect_right(self.starts, offset)

    def token(self, after: int, before: int) -> tuple[int, int, str]:
        """Return (start, end, text) of what stands there, blanks and parentheses aside."""
        between = self.data[after:before].decode()
        core = between.strip("() \t\r\n\\")
        start = after + len(between[: between.find(core)].encode()) if core else after
        return start, start + len(core.encode()), " ".join(core.split())


@dataclass(frozen=True, slots=True)
class Site:
    """One node, and what is around it."""

    node: ast.AST
    text: Source
    function: str
    names: tuple[str, ...]
    """Variables of the function that the node is in."""
    parent: ast.AST
    alone: bool
    """Whether it is the only statement of its block."""

    def inside(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> Site:
        """Return the site for what `node` holds."""
        function = f"{self.function}.{node.name}" if self.function else node.name
        if isinstance(node, ast.ClassDef):
            return replace(self, function=function)
        return replace(self, function=function, names=_variables(node))


def _variables(function: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, ...]:
    """Names that the function binds: parameters first, then in the order of the text."""
    names = [arg.arg for arg in (*function.args.posonlyargs, *function.args.args)]
    names += [
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
    return tuple(dict.fromkeys(name for name in names if name not in ("self", "cls", "_")))


def _swapped(
    site: Site, after: ast.AST, before: ast.AST, table: dict[str, str]
) -> Iterator[Change]:
    """Yield the other operators that `table` has for the one between two nodes."""
    start, end, token = site.text.token(site.text.end(after), site.text.start(before))
    for other in table.get(token, "").split(","):
        if other:
            yield start, end, other


_COMPARISONS = {
    **{"<": "<=,>", "<=": "<,>=", ">": ">=,<", ">=": ">,<=", "==": "!=", "!=": "=="},
    **{"in": "not in", "not in": "in", "is": "is not", "is not": "is"},
}
_ARITHMETIC = {"+": "-", "-": "+", "*": "+", "//": "%", "%": "//", "/": "*", "&": "|", "|": "&"}
_AUGMENTED = {"+=": "-=", "-=": "+=", "*=": "+=", "//=": "%=", "%=": "//="}
_LOGIC = {"and": "or", "or": "and"}
_TWINS = {
    **{"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"},
    **{"upper": "lower", "lower": "upper", "lstrip": "rstrip", "rstrip": "lstrip"},
    **{"startswith": "endswith", "endswith": "startswith", "find": "rfind", "rfind": "find"},
    **{"popleft": "pop", "floor": "ceil", "ceil": "floor", "isalpha": "isalnum", "add": "discard"},
    **{"isdigit": "isalnum", "ljust": "rjust", "rjust": "ljust", "partition": "rpartition"},
}


def compare(site: Site) -> Iterator[Change]:
    """A comparison flipped, or with the wrong boundary."""
    if isinstance(node := site.node, ast.Compare):
        operands = [node.left, *node.comparators]
        for left, right in pairwise(operands):
            yield from _swapped(site, left, right, _COMPARISONS)


def arithmetic(site: Site) -> Iterator[Change]:
    """The wrong operator."""
    node = site.node
    if isinstance(node, ast.BinOp):
        left = node.left
        if not (isinstance(left, ast.Constant) and isinstance(left.value, str)):
            yield from _swapped(site, left, node.right, _ARITHMETIC)
    elif isinstance(node, ast.AugAssign):
        yield from _swapped(site, node.target, node.value, _AUGMENTED)


def logic(site: Site) -> Iterator[Change]:
    """`and` for `or`."""
    if isinstance(node := site.node, ast.BoolOp):
        for left, right in pairwise(node.values):
            yield from _swapped(site, left, right, _LOGIC)


def negation(site: Site) -> Iterator[Change]:
    """A `not` that is missing, or one too many."""
    node, text = site.node, site.text
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield text.start(node), text.start(node.operand), ""
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        test = node.test
        if isinstance(test, ast.Name | ast.Call | ast.Attribute | ast.Subscript):
            yield text.start(test), text.start(test), "not "


def constant(site: Site) -> Iterator[Change]:
    """A number off by one, or the other truth value."""
    node = site.node
    if not isinstance(node, ast.Constant) or isinstance(site.parent, ast.Expr):
        return
    start, end = site.text.start(node), site.text.end(node)
    if isinstance(node.value, bool):
        yield start, end, str(not node.value)
    elif isinstance(node.value, int):
        yield start, end, str(node.value + 1)
        if node.value > 0:
            yield start, end, str(node.value - 1)


def arguments(site: Site) -> Iterator[Change]:
    """The first two arguments of a call swapped."""
    node, text = site.node, site.text
    if not isinstance(node, ast.Call) or len(node.args) < 2:
        return
    one, two = node.args[:2]
    if isinstance(one, ast.Starred) or isinstance(two, ast.Starred) or text.of(one) == text.of(two):
        return
    between = text.data[text.end(one) : text.start(two)].decode()
    if "(" not in between and ")" not in between:
        yield text.start(one), text.end(two), text.of(two) + between + text.of(one)


def statement(site: Site) -> Iterator[Change]:
    """A statement that is missing."""
    node, text = site.node, site.text
    if not _may_miss(node):
        return
    if site.alone:
        yield text.start(node), text.end(node), "pass"
        return
    first, last = text.starts[node.lineno - 1], text.starts[node.end_lineno]  # type: ignore[attr-defined]
    rest = text.data[first : text.start(node)] + text.data[text.end(node) : last]
    if not rest.strip():  # the whole lines, and no other statement on them
        yield first, last, ""


def _may_miss(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call)
    if isinstance(node, ast.Assign):
        return isinstance(node.targets[0], ast.Subscript | ast.Attribute)
    return isinstance(node, ast.AugAssign | ast.Continue | ast.Break)


def variable(site: Site) -> Iterator[Change]:
    """Another variable of the same function."""
    node = site.node
    if not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load):
        return
    called = isinstance(site.parent, ast.Call) and site.parent.func is node
    if called or node.id not in site.names:
        return
    at = site.names.index(node.id)
    others = [*site.names[at + 1 :], *site.names[:at]]
    for other in dict.fromkeys([*others[:1], *others[-1:]]):
        yield site.text.start(node), site.text.end(node), other


def boundary(site: Site) -> Iterator[Change]:
    """An index or the end of a range off by one."""
    for edge in _edges(site.node):
        end, simple = site.text.end(edge), ast.Name | ast.Call | ast.Attribute | ast.Subscript
        if isinstance(edge, simple):
            yield end, end, " - 1"
            yield end, end, " + 1"


def _edges(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        yield from node.args[:2]
    elif isinstance(node, ast.Slice):
        yield from (edge for edge in (node.lower, node.upper) if edge is not None)


def twin(site: Site) -> Iterator[Change]:
    """A function mistaken for its twin: `min` for `max`."""
    node, text = site.node, site.text
    if not isinstance(node, ast.Call):
        return
    end = text.end(node.func)
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    if name in _TWINS:
        yield end - len(name.encode()), end, _TWINS[name]


KINDS: dict[str, Callable[[Site], Iterator[Change]]] = {
    kind.__name__: kind
    for kind in (
        *(compare, arithmetic, logic, negation, constant, arguments),
        *(statement, variable, boundary, twin),
    )
}
"""Every kind by its name."""
