"""Inside the box: what a frame of the host's is, and what is none; pure functions."""

from __future__ import annotations

import json
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FRAME = struct.Struct(">II")
MAX_HEAD_BYTES = 1 << 24
"""Arguments and environment of a program are the longest; Linux takes 2 MiB of those."""
_decode = json.JSONDecoder().decode
encode = json.JSONEncoder().encode


class BadFrame(Exception):
    """What came over the channel was not sent by a host of ours."""


def max_body_bytes(limits: dict[str, Any]) -> int:
    """The longest body that a request may have."""
    longest: int = max(limits.get("file_bytes", 0), 1 << 20)
    return longest + 16_384


def sizes(data: bytes, max_body: int) -> tuple[int, int]:
    """(header length, body length) that the first bytes of a frame announce.

    Raises:
        BadFrame: one is over its limit; nothing of that size is allocated.
    """
    head, body = FRAME.unpack_from(data)
    if head > MAX_HEAD_BYTES or body > max_body:
        raise BadFrame(f"a frame of {head} + {body} bytes is over the limit")
    return head, body


def header(data: bytes) -> dict[str, Any]:
    """The request in the header of a frame.

    Raises:
        BadFrame: it is not a JSON object with a name of an operation and a number.
    """
    try:
        found = _decode(data.decode())
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"a header that is not JSON: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("op"), str):
        raise BadFrame(f"a header without an operation: {found!r:.200}")
    if type(found.get("id")) is not int:
        raise BadFrame(f"a header without a number: {found!r:.200}")
    return found
