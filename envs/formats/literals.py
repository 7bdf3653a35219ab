r"""Python's literals, as far as JSON can hold them, read with a position for every fault.

Python's own parser is not used: its messages differ from one version to the next, and what an agent
reads must not; it warns about `\d`; and it points into UTF-8 instead of characters. A test holds
this reader to `ast.literal_eval`.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from turnwise.envs.formats.reading import skip_space
from turnwise.envs.formats.strict_json import MAX_DEPTH, surrogate

CALL_NAME = r"[^\W\d][\w.\-]*"

_NAME = re.compile(CALL_NAME)
_STRING = re.compile(
    r'"""([^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*)"""'
    r"|'''([^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*)'''"
    r'|"(?!"")([^"\\\n]*(?:\\.[^"\\\n]*)*)"'
    r"|'(?!'')([^'\\\n]*(?:\\.[^'\\\n]*)*)'",
    re.S,
)
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?(?![\w.])")
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_ESCAPE = re.compile(r"\\([0-7]{1,3}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.S)
_ESCAPED = {
    **{"\n": "", "\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b"},
    **{"f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"},
}


class LiteralFault(ValueError):
    """Text that is no literal: `at` is the offset of the fault in the text."""

    def __init__(self, at: int, why: str) -> None:
        super().__init__(why)
        self.at = at


class Reader:
    """Reads from offset `at` of `text` on; raises `LiteralFault`."""

    def __init__(self, text: str, at: int) -> None:
        self.text, self.at = text, at

    def skip_space(self) -> int:
        """Go on to the next character that is no white space; return its offset."""
        self.at = skip_space(self.text, self.at)
        return self.at

    def found(self, mark: str) -> bool:
        """Read `mark` if it is next; return whether it was."""
        found = self.text.startswith(mark, self.skip_space())
        self.at += found
        return found

    def take(self, mark: str, why: str) -> None:
        """Read `mark`."""
        if not self.found(mark):
            raise LiteralFault(self.at, why)

    def name(self, what: str) -> str:
        """Read a name."""
        if (match := _NAME.match(self.text, self.skip_space())) is None:
            raise LiteralFault(self.at, f"expected {what}")
        self.at = match.end()
        return match[0]

    def named(self, close: str) -> dict[str, Any]:
        """Read `a=1, b="x"` up to and with `close`."""
        args: dict[str, Any] = {}
        while not self.found(close):
            at = self.at
            name = self.name("an argument: name=value")
            self.take("=", "an argument is written name=value")
            if name in args:
                raise LiteralFault(at, f"duplicate argument {name[:40]!r}")
            args[name] = self.value(0)
            self._comma(close)
        return args

    def value(self, depth: int) -> Any:
        """Read a value that stands in `depth` brackets."""
        at = self.skip_space()
        if depth > MAX_DEPTH:
            raise LiteralFault(at, f"nested deeper than {MAX_DEPTH}")
        if self.found("["):
            return self._list(depth + 1)
        if self.found("{"):
            return self._dict(depth + 1)
        if self.text.startswith(('"', "'"), at):
            return self._text()
        if (match := _NUMBER.match(self.text, at)) is not None:
            self.at = match.end()
            return _number(match, at)
        return self._word()

    def _list(self, depth: int) -> list[Any]:
        items = []
        while not self.found("]"):
            items.append(self.value(depth))
            self._comma("]")
        return items

    def _dict(self, depth: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        while not self.found("}"):
            if not self.text.startswith(('"', "'"), at := self.at):
                raise LiteralFault(at, "a key is text in quotes")
            if (key := self._text()) in entries:
                raise LiteralFault(at, f"duplicate key {key[:40]!r}")
            self.take(":", "expected : after a key")
            entries[key] = self.value(depth)
            self._comma("}")
        return entries

    def _comma(self, close: str) -> None:
        """Read the comma between two entries, if this is not the last one."""
        if not self.found(",") and not self.text.startswith(close, self.at):
            raise LiteralFault(self.at, f"expected , or {close}")

    def _text(self) -> str:
        """Read one or more strings behind one another: Python joins them."""
        first, parts = self.at, []
        while self.text.startswith(('"', "'"), self.skip_space()):
            if (match := _STRING.match(self.text, self.at)) is None:
                raise LiteralFault(self.at, f"unclosed quote {self.text[self.at]}")
            body = match[match.lastindex or 0]
            parts.append(_unescaped(body, match.start(match.lastindex or 0)))
            self.at = match.end()
        return _whole("".join(parts), first)

    def _word(self) -> Any:
        match = _NAME.match(self.text, self.at)
        if match is None or match[0] not in _WORDS:
            raise LiteralFault(self.at, "expected a literal: text in quotes, a number, True, ...")
        self.at = match.end()
        return _WORDS[match[0]]


def _number(match: re.Match[str], at: int) -> int | float:
    if match[1] is None and match[2] is None:
        try:
            return int(match[0])
        except ValueError:
            raise LiteralFault(at, "the number has too many digits") from None
    if not math.isfinite(value := float(match[0])):
        raise LiteralFault(at, f"the number {match[0][:20]} is not finite")
    return value


def _unescaped(body: str, start: int) -> str:
    r"""Return what a string literal stands for; as in Python, an unknown `\d` is itself."""
    if "\\" not in body:
        return body

    def one(match: re.Match[str]) -> str:
        code = match[1]
        if code in _ESCAPED:
            return _ESCAPED[code]
        base = 8 if code[0] in "01234567" else 16 if len(code) > 1 else 0
        number = int(code if base == 8 else code[1:], base) if base else -1
        if number > 0x10FFFF or (number < 0 and code in "xuUN"):
            raise LiteralFault(start + match.start(), f"\\{code} is no character")
        return match[0] if number < 0 else chr(number)

    return _ESCAPE.sub(one, body)


def _whole(text: str, at: int) -> str:
    """Return `text` with pairs of surrogate escapes joined, as JSON writes them."""
    if surrogate(text) is None:
        return text
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise LiteralFault(at, "a \\ud800-\\udfff escape has no partner") from None


def literal(value: Any) -> str:
    """Return a JSON value as Python writes it, on one line.

    Raises:
        ValueError: it holds NaN or an infinity.
    """
    if isinstance(value, dict):
        return f"{{{', '.join(f'{literal(k)}: {literal(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    if value is None or isinstance(value, bool):
        return repr(value)
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
