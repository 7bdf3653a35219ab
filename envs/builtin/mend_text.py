"""Reading and editing text files by their content."""

from __future__ import annotations

import difflib

from turnwise.envs.tools import ToolFailed


def lines(text: str, start: int, end: int, *, numbers: bool = False) -> str:
    """Return lines `start` to `end` of a text, counted from 1; `end` 0 is the last one.

    Raises:
        ToolFailed: there are no such lines.
    """
    held = text.splitlines()
    if start < 1 or (end and end < start) or start > max(1, len(held)):
        raise ToolFailed(f"lines {start} to {end or 'the end'}: the file has {len(held)} lines")
    chosen = held[start - 1 : end or None]
    if numbers:
        chosen = [f"{number:3} {line}" for number, line in enumerate(chosen, start)]
    return "\n".join(chosen)


def utf8(text: str) -> str:
    """Return `text`.

    Raises:
        ToolFailed: a file cannot hold it.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ToolFailed("the text is not valid UTF-8") from None
    return text


def replaced(name: str, text: str, old: str, new: str) -> str:
    """Return `text` with its only `old` replaced; in an empty file, `old` is empty.

    Raises:
        ToolFailed: `old` is not there, or more than once, or equals `new`.
    """
    if old == new:
        raise ToolFailed("old and new are the same")
    if not old and text:
        raise ToolFailed("old is empty; give the text to replace")
    if (at := text.find(old)) < 0:
        raise ToolFailed(f"old is not in {name}{_near(text, old)}")
    if old and text.find(old, at + 1) >= 0:
        raise ToolFailed(f"old is {_places(text, old)} times in {name}; add text around it")
    return text[:at] + new + text[at + len(old) :]


def _places(text: str, old: str) -> int:
    return sum(text.startswith(old, i) for i in range(len(text)))


def _near(text: str, old: str) -> str:
    """Return a hint at the line that was probably meant."""
    held = [line.strip() for line in text.splitlines()]
    first = next(iter(old.strip().splitlines()), "")[:200]
    close = difflib.get_close_matches(first, held, n=1, cutoff=0.6)
    return f"; line {held.index(close[0]) + 1} is {close[0]!r}" if close else ""


def nearest(path: str, paths: list[str]) -> str:
    """Return a hint at the files that there are."""
    if len(paths) <= 8:
        return f"there are {' '.join(paths)}"
    close = difflib.get_close_matches(path[:200], paths, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(close)}?" if close else "see ls"


def step(text: str, wanted: str) -> tuple[str, str]:
    """Return (old, new) of one edit towards `wanted`: the first lines that differ, made unique."""
    if not text:
        return "", wanted
    now, then = text.splitlines(keepends=True), wanted.splitlines(keepends=True)
    codes = difflib.SequenceMatcher(None, now, then, autojunk=False).get_opcodes()
    _, a, b, c, d = next(code for code in codes if code[0] != "equal")
    if b - a == d - c == 1:
        old, new = _stripped(now[a], then[c])
        if _unique(text, old):
            return old, new
    while a == b or not _unique(text, "".join(now[a:b])):
        if a > 0 and c > 0 and now[a - 1] == then[c - 1]:
            a, c = a - 1, c - 1
        elif b < len(now) and d < len(then) and now[b] == then[d]:
            b, d = b + 1, d + 1
        else:
            return text, wanted
    old, new = "".join(now[a:b]), "".join(then[c:d])
    if old.endswith("\n") and new.endswith("\n") and _unique(text, old[:-1]):
        return old[:-1], new[:-1]
    return old, new


def _stripped(old: str, new: str) -> tuple[str, str]:
    """Return two lines without the blanks that both start and end with."""
    while old[:1] == new[:1] and old[:1] in (" ", "\t") and len(old) > 1 and len(new) > 1:
        old, new = old[1:], new[1:]
    return old.rstrip("\n"), new.rstrip("\n")


def _unique(text: str, old: str) -> bool:
    return bool(old) and text.find(old) >= 0 and text.find(old, text.find(old) + 1) < 0
