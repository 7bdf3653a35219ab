"""What a template puts behind an action, with the contents of the new messages cut out.

A template is a program that costs tens of microseconds at the least, and its result for one tuple
of roles is always the same around the contents. So it runs once, on slots, and after that a turn
costs the encoding of its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from turnwise.agents.codec import Codec


@dataclass(frozen=True)
class SuffixPlan:
    """Ids and holes.

    Example:
        `SuffixPlan(parts=([1, 5], ("", 0, ""), [1, 4]), closing=1)` for one tool message.
    """

    parts: tuple[list[int] | tuple[str | int, ...], ...]
    """A list of ids, or one run of plain text: text and numbers of contents in turn."""
    closing: int
    """How many ids at the front an action that ended by itself has sampled already."""

    def fill(self, codec: Codec, contents: Sequence[str], *, ended: bool) -> list[int]:
        """Return the ids with `contents` in the holes; without the closing ones if `ended`."""
        ids: list[int] = []
        for part in self.parts:
            if isinstance(part, list):
                ids += part
            else:
                run = [piece if isinstance(piece, str) else contents[piece] for piece in part]
                ids += codec.plain("".join(run))
        return ids[self.closing :] if ended else ids


def cut(codec: Codec, text: str, slots: Sequence[str], stop: int) -> SuffixPlan | None:
    """Return the plan of `text`, in which `slots` stand for the contents; None if there is none.

    Each slot is looked for once and in order. Where a template repeats or reorders contents the
    plan is wrong, as it is where it changes them: try it before it is used.
    """
    parts: list[list[int] | tuple[str | int, ...]] = []
    for run in codec.split(text):
        pieces = _pieces(run, slots) if isinstance(run, str) else []
        ids = [run] if isinstance(run, int) else codec.plain(run)
        if len(pieces) > 1:
            parts.append(tuple(pieces))
        elif parts and isinstance(last := parts[-1], list):
            last += ids
        else:
            parts.append(ids)
    closing = parts[0] if isinstance(parts[0], list) else []
    return SuffixPlan(tuple(parts), closing.index(stop) + 1) if stop in closing else None


def _pieces(run: str, slots: Sequence[str]) -> list[str | int]:
    pieces: list[str | int] = [run]
    for number, slot in enumerate(slots):
        tail = pieces.pop()
        before, found, after = str(tail).partition(slot)
        pieces += [before, number, after] if found else [tail]
    return pieces
