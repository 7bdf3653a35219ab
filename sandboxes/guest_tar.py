"""Tar archives as boxes exchange them, read by host and guest alike.

A strict subset of POSIX tar: regular files, folders and relative links that stay inside; names
longer than 100 bytes in pax records. `members` is the one reader, and refuses all else.
"""

from __future__ import annotations

import collections
import itertools
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

BLOCK = 512
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_MAGIC = b"ustar\x0000"
REGULAR, LINK, DIRECTORY, PAX = b"0", b"2", b"5", b"x"
MAX_PAX_BYTES = 1 << 14
_LAST_MTIME = 0o77777777777

Member = collections.namedtuple("Member", "name kind mode mtime data")
Member.__doc__ = "An entry; `name` has no slashes at its ends; `data` of a link is its target."


def entry(
    path: bytes, kind: bytes, mode: int, size: int, mtime: float, target: bytes = b""
) -> bytes:
    """What stands before the content of an entry of `size` bytes."""
    records = [(b"path", path)] if len(path) > 100 else []
    records += [(b"linkpath", target)] if len(target) > 100 else []
    longer = b""
    if records:
        body = b"".join(_record(key, value) for key, value in records)
        longer = _header(b"pax", PAX, 0o644, len(body), 0.0, b"") + body + padding(len(body))
    return longer + _header(path[:100], kind, mode & 0o777, size, mtime, target[:100])


def padding(size: int) -> bytes:
    """What stands after the content of an entry of `size` bytes."""
    return bytes(-size % BLOCK)


def _header(path: bytes, kind: bytes, mode: int, size: int, mtime: float, target: bytes) -> bytes:
    when = int(min(max(mtime, 0), _LAST_MTIME))
    numbers = [b"%07o\0" % mode, b"%07o\0" % 0, b"%07o\0" % 0, b"%011o\0" % size, b"%011o\0" % when]
    rest = [kind, target, _MAGIC, b"", b"", b"%07o\0" % 0, b"%07o\0" % 0, b""]
    blank = _HEADER.pack(path, *numbers, b" " * 8, *rest)
    return _HEADER.pack(path, *numbers, b"%06o\0 " % sum(blank), *rest)


def _record(key: bytes, value: bytes) -> bytes:
    body = b" %s=%s\n" % (key, value)
    length = len(body) + 1
    while len(b"%d" % length) + len(body) != length:
        length = len(b"%d" % length) + len(body)
    return b"%d%s" % (length, body)


def members(data: bytes | bytearray) -> Iterator[Any]:
    """Yield every `Member` of an archive.

    Raises:
        ValueError: it is not an archive of ours: cut short, a wrong checksum, a kind of entry that
            is not kept, a name or a link that leads out.
    """
    view, at, renamed = memoryview(data), 0, {}
    while True:
        block = bytes(view[at : at + BLOCK])
        if len(block) < BLOCK:
            raise ValueError(f"the archive ends at {at} without its end mark")
        if block == bytes(BLOCK):
            return
        name, mode, _, _, size, mtime, _, kind, target, *_, prefix = _checked(block, at)
        start, length = at + BLOCK, _octal(size)
        body = view[start : start + length]
        if len(body) < length:
            raise ValueError(f"an entry of {length} bytes is cut short at {len(data)}")
        at = start + length + -length % BLOCK
        if kind == PAX:
            if length > MAX_PAX_BYTES:
                raise ValueError(f"a pax header of {length} bytes")
            renamed = dict(_records(bytes(body)))
            continue
        whole = (_text(prefix) + b"/" if _text(prefix) else b"") + _text(name)
        path = _inside(renamed.get(b"path", whole))
        aim = renamed.get(b"linkpath", _text(target))
        renamed = {}
        if path:
            yield _member(path, kind, _octal(mode) & 0o777, _octal(mtime), body, aim)


def _member(path: bytes, kind: bytes, mode: int, mtime: int, body: Any, target: bytes) -> Any:
    if kind not in (REGULAR, b"\0", DIRECTORY, LINK):
        raise ValueError(f"{path!r:.200} is of kind {kind!r}: only files, folders and links")
    if kind == LINK and not stays_inside(path, target):
        raise ValueError(f"the link {path!r:.200} leads out to {target!r:.200}")
    if kind in (DIRECTORY, LINK) and len(body):
        raise ValueError(f"{path!r:.200} is no file and has {len(body)} bytes")
    kind = REGULAR if kind == b"\0" else kind
    return Member(path, kind, mode, mtime, target if kind == LINK else body)


def _checked(block: bytes, at: int) -> tuple[Any, ...]:
    fields = _HEADER.unpack(block)
    if _octal(fields[6]) != sum(block) - sum(fields[6]) + 8 * ord(" "):
        raise ValueError(f"no archive entry at {at}: the checksum is wrong")
    if fields[9] != _MAGIC:
        raise ValueError(f"the entry at {at} is not in POSIX format (tar --format=posix)")
    return fields


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise ValueError(f"{field!r} is not an octal number")
    return int(digits, 8)


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _records(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    while body:
        digits = body[:12].split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() else 0
        key, mark, value = body[len(digits) + 1 : length - 1].partition(b"=")
        if not mark or not len(digits) < length <= len(body) or body[length - 1 : length] != b"\n":
            raise ValueError(f"a pax record that is none: {body[:60]!r}")
        if key == b"size" or key.startswith(b"GNU.sparse"):
            raise ValueError(f"pax records of {key!r} are not taken")
        yield key, value
        body = body[length:]


def _inside(name: bytes) -> bytes:
    """`name` without empty and `.` steps; the empty name is the folder itself."""
    steps = [step for step in name.split(b"/") if step not in (b"", b".")]
    if name.startswith(b"/") or b".." in steps or b"\0" in name:
        raise ValueError(f"the name {name!r:.200} leads out of the folder")
    return b"/".join(steps)


def stays_inside(path: bytes, target: bytes) -> bool:
    """Whether a link at `path` to `target` can only lead to places in the folder.

    Steps up may only come first: `a/..` is the folder above where link `a` leads to, which may be
    outside even if `a` is not.
    """
    steps = [step for step in target.split(b"/") if step not in (b"", b".")]
    ups = len(list(itertools.takewhile(lambda step: step == b"..", steps)))
    if not target or b"\0" in target or target.startswith(b"/") or b".." in steps[ups:]:
        return False
    return ups <= path.count(b"/")
