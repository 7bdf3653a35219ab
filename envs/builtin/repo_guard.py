"""What a mend of a repository must not add.

The tests of a repository run in one process with the code that they test. So that this code cannot
reach its judge, an edit may add none of the ways there: no import, class, attribute to be set or
name with two underscores, nothing that ends the process or looks into it. What the module had
before it was broken may stay.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

_DENIED = """
    eval exec compile open input print exit quit breakpoint globals locals vars getattr setattr
    delattr type object super memoryview help dir id classmethod staticmethod property
    BaseException SystemExit KeyboardInterrupt GeneratorExit SkipTest
    os sys unittest pytest inspect gc ctypes builtins signal threading subprocess importlib
    modules abort kill killpg fork settrace setprofile format_map write writev close dup dup2
"""
DENIED = frozenset(_DENIED.split())
"""Names and attributes."""


def objection(original: str, edited: str) -> str | None:
    """Return what `edited` adds to a module that it must not; None for nothing.

    Text that is not Python is not objected to: no test will pass with it.
    """
    try:
        tree = ast.parse(edited)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    allowed = set(_words(ast.parse(original)))
    return next((word for word in _words(tree) if word not in allowed), None)


def _words(tree: ast.AST) -> Iterator[str]:
    """Yield every use of something that leads out of a module, as text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield ast.unparse(node)
        elif isinstance(node, ast.Name) and _is_denied(node.id):
            yield node.id
        elif isinstance(node, ast.Attribute):
            if not isinstance(node.ctx, ast.Load):
                yield f"{ast.unparse(node)} ="
            if _is_denied(node.attr) or node.attr.startswith("_"):
                yield node.attr
        elif isinstance(node, ast.ClassDef):
            yield f"class {node.name}"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_denied(node.name):
            yield f"def {node.name}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "__" in node.value:
            yield repr(node.value)


def _is_denied(name: str) -> bool:
    return name in DENIED or name.startswith("__") or name.endswith("__")
