"""Python source to a syntax tree, by one thread at a time.

CPython before 3.13 counts how deep it is in a tree in one place for all threads (gh-106905). It may
switch threads half-way, and whoever parses then gets a SystemError out of good source. Episodes run
on threads, so every `ast.parse` of theirs goes through here.
"""

from __future__ import annotations

import ast
import threading

_one_at_a_time = threading.RLock()


def parse(source: str | bytes) -> ast.Module:
    """Return the tree of a program. Raises SyntaxError, ValueError: it is none."""
    with _one_at_a_time:
        return ast.parse(source)


def parse_expression(source: str) -> ast.expr:
    """Return the tree of one expression. Raises SyntaxError, ValueError: it is none."""
    with _one_at_a_time:
        return ast.parse(source, mode="eval").body
