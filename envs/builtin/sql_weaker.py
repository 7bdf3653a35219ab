"""Queries that are nearly right: what a question of `Sql` leaves out, one thing at a time.

A world is kept only if its rows tell them all from the right one: who forgets a condition, a bound,
a tie or an order must not be paid for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(r"'[^']*'|<=|>=|\w+|\S")
_CLAUSES = ("where", "group", "having", "order")
_OTHER = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
_RANKS = ("row_number", "dense_rank")


def weakened(sql: str) -> list[str]:
    """Return variants of a query of ours, each without one of its parts or with another sign."""
    tokens = _TOKEN.findall(sql)
    ways = (_without_conditions, _without_order, _with_other_bounds, _with_other_ties)
    return [" ".join(variant) for way in ways for variant in way(tokens)]


def _clauses(tokens: list[str], *words: str) -> Iterator[tuple[int, int]]:
    """Yield where each clause that starts with one of `words` begins and ends, at any depth."""
    for start, token in enumerate(tokens):
        if token in words:
            yield start, _end(tokens, start + 1, _CLAUSES)


def _end(tokens: list[str], start: int, words: tuple[str, ...]) -> int:
    """Return where one of `words` stands first outside brackets, or else where these end."""
    depth = 0
    for place in range(start, len(tokens)):
        if depth == 0 and tokens[place] in (")", *words):
            return place
        depth += (tokens[place] == "(") - (tokens[place] == ")")
    return len(tokens)


def _parts(tokens: list[str], start: int, end: int, mark: str) -> list[list[str]]:
    """Split a stretch at `mark` outside brackets; the `and` of a `between` splits nothing."""
    parts: list[list[str]] = []
    while start < end:
        stop = min(end, _end(tokens, start, (mark,)))
        if mark == "and" and "between" in tokens[start:stop]:
            stop = min(end, _end(tokens, stop + 1, (mark,)))
        parts.append(tokens[start:stop])
        start = stop + 1
    return parts


def _without_conditions(tokens: list[str]) -> Iterator[list[str]]:
    """Leave one condition out."""
    for start, end in _clauses(tokens, "where", "having"):
        parts = _parts(tokens, start + 1, end, "and")
        for left_out in range(len(parts)):
            kept = [part for place, part in enumerate(parts) if place != left_out]
            joined = [token for part in kept for token in ("and", *part)][1:]
            yield [*tokens[:start], *([tokens[start], *joined] if kept else ()), *tokens[end:]]


def _without_order(tokens: list[str]) -> Iterator[list[str]]:
    """Order by fewer of the keys or by none, or take the highest last."""
    for start, end in _clauses(tokens, "order"):
        keys = _parts(tokens, start + 2, end, ",")
        for count in range(len(keys)):
            joined = [token for key in keys[:count] for token in (",", *key)][1:]
            order = ["order", "by", *joined] if count else []
            yield [*tokens[:start], *order, *tokens[end:]]
    for place, token in enumerate(tokens):
        if token == "desc":
            yield [*tokens[:place], *tokens[place + 1 :]]


def _with_other_bounds(tokens: list[str]) -> Iterator[list[str]]:
    """Take a bound in that is to be left out, or the other way round."""
    for place, token in enumerate(tokens):
        if token in _OTHER:
            yield [*tokens[:place], _OTHER[token], *tokens[place + 1 :]]
        if token == "between":
            name, (low, _, high) = tokens[place - 1], tokens[place + 1 : place + 4]
            for signs in ((">", "<="), (">=", "<")):
                bounds = [signs[0], low, "and", name, signs[1], high]
                yield [*tokens[:place], *bounds, *tokens[place + 4 :]]


def _with_other_ties(tokens: list[str]) -> Iterator[list[str]]:
    """Count those that share a place otherwise."""
    if "max" in tokens:
        yield [*tokens, "limit", "1"]
    for place, token in enumerate(tokens):
        if token == "rank":
            for other in _RANKS:
                yield [*tokens[:place], other, *tokens[place + 1 :]]
