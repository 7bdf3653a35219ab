"""What a box's workdir held at one moment, and fresh boxes that start from it.

The files travel as a tar archive that the guest packs inside the box. What arrives is untrusted:
it is read by one strict reader (`guest_tar.members`) before anybody may have it, here and again in
the box that unpacks it. Nothing is ever unpacked on the host.

Forks of a box of bubblewrap's as root share its files instead, where the kernel can (`layers`).
What a snapshot does not hold: files outside the workdir, processes, Python and shell state. For
Python state, `fork_kernel` copies a kernel within its box.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from turnwise.sandboxes.base import Limits, Sandbox
from turnwise.sandboxes.guest_tar import REGULAR, members

FILES = "files"
MAX_FORKS = 256
B = TypeVar("B", bound=Sandbox)


@dataclass(frozen=True)
class Snapshot:
    """The files of a workdir.

    Example:
        snapshot = box.snapshot()
        one, two = box.fork(2, snapshot)
        print(snapshot.files()["result.txt"])
    """

    data: bytes = field(repr=False)
    """A POSIX tar archive: regular files, folders, and relative links that stay inside."""
    kinds: frozenset[str] = frozenset({FILES})
    """What was kept; what is not named here is not in it."""
    left_out: tuple[str, ...] = ()
    """Entries that are not kept (at most 32 names): links that lead out of the workdir, sockets,
    pipes, devices, and what its own user may not read."""
    left_out_count: int = 0

    @cached_property
    def id(self) -> str:
        """A hash of `data`: equal files with equal times have equal ids."""
        return f"snapshot-{hashlib.sha256(self.data).hexdigest()[:20]}"

    def files(self) -> dict[str, bytes]:
        """{path relative to the workdir: content} of the regular files.

        Raises:
            ValueError: the data is not an archive of the kind above.
        """
        found = [member for member in members(self.data) if member.kind == REGULAR]
        return {os.fsdecode(member.name): bytes(member.data) for member in found}


def check_archive(data: bytes, limits: Limits) -> None:
    """Return if `data` is an archive that a box of these limits may get.

    Raises:
        ValueError: it is too long, holds too many entries, or breaks a rule of `Snapshot.data`.
    """
    if len(data) > limits.file_bytes:
        raise ValueError(f"{len(data)} bytes are over Limits.file_bytes = {limits.file_bytes}")
    for count, _ in enumerate(members(data), 1):
        if count > limits.inodes:
            raise ValueError(f"more entries than Limits.inodes = {limits.inodes}")


def snapshot_from(reply: Mapping[str, Any], data: bytes, limits: Limits) -> Snapshot:
    """A `Snapshot` of what a guest sent.

    Raises:
        ValueError: that is not what a guest of ours sends.
    """
    check_archive(data, limits)
    names, count = reply.get("left_out"), reply.get("left_out_count")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("left_out is no list of names")
    if type(count) is not int or count < len(names):
        raise ValueError(f"left_out_count is {count!r:.40}")
    return Snapshot(data, left_out=tuple(names), left_out_count=count)


def open_copies(open_box: Callable[[], B], fill: Callable[[B], object], n: int) -> list[B]:
    """`n` boxes, started side by side and filled; all or none.

    Raises:
        ValueError: `n` is not in 1..256.
        SandboxError, OSError: one could not be started or filled; the others are closed.
    """
    if not 1 <= n <= MAX_FORKS:
        raise ValueError(f"a box is forked into 1 to {MAX_FORKS}, asked for {n}")

    def copy(_: int) -> B | BaseException:
        try:
            box = open_box()
        except Exception as error:
            return error
        try:
            fill(box)
        except BaseException as error:
            box.close()
            return error
        return box

    if n == 1:
        return _all_or_none([copy(0)])
    with ThreadPoolExecutor(min(n, 2 * (os.cpu_count() or 1))) as pool:
        return _all_or_none(list(pool.map(copy, range(n))))


def _all_or_none(found: list[B | BaseException]) -> list[B]:
    boxes = [box for box in found if not isinstance(box, BaseException)]
    for error in found:
        if isinstance(error, BaseException):
            for box in boxes:
                box.close()
            raise error
    return boxes
