"""The workdir of a box as root of its host reaches it, past the guest: to freeze, and to lay out.

It is quicker than an archive that the guest packs and another unpacks, and no less careful: the
tree is the agent's, so `Copier` opens each step from the folder above it and follows no link.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

from turnwise.sandboxes import layers
from turnwise.sandboxes.base import Sandbox, SandboxDied, SandboxSpec, StartFailed
from turnwise.sandboxes.guest_files import FOLDER
from turnwise.sandboxes.guest_pack import MAX_DEPTH
from turnwise.sandboxes.layers import Layer
from turnwise.sandboxes.trees import TooMuch, copy_as

_REFUSED = (errno.EPERM, errno.EACCES, errno.EOVERFLOW)
"""What a kernel or a container says to a root that may not write as another user."""
_DO_NOT_FIT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


class HostFiles:
    """Reaches the files of one box.

    Args:
        spec: What the box is.
        root: Opens a descriptor of its root folder. Raises `SandboxDied` when the box is gone, and
            `OSError` where this user may not look into it.
        user: The user of this host that the box's files belong to; None where it is our own.
        open_over: Opens a box whose workdir is an overlay of a layer, where the backend can.
    """

    def __init__(
        self,
        spec: SandboxSpec,
        root: Callable[[], int],
        user: int | None,
        open_over: Callable[[Layer], object] | None = None,
    ) -> None:
        self.spec, self.user, self.open_over = spec, user, open_over
        self._root = root

    def freeze(self, share: int = 1) -> Layer | None:
        """The files of now; None where they cannot be had so, and must travel as an archive.

        Args:
            share: The layer may hold one part in so many of what the limits give to a folder.

        Raises:
            SandboxDied: the box is gone.
        """
        if not layers.usable() or self.user is None:
            return None
        with contextlib.suppress(OSError), self.workdir() as folder:
            return layers.freeze(folder, self.spec.limits, share)
        return None

    def copy_into(self, box: Sandbox) -> bool:
        """Copy the files of now into a fresh box; False where they must travel as an archive.

        Raises:
            SandboxDied: this box is gone.
            StartFailed, OSError: see `lay`.
        """
        with contextlib.ExitStack() as stack:
            try:
                folder = stack.enter_context(self.workdir())
            except OSError:
                return False
            return lay(folder, box)

    @contextlib.contextmanager
    def workdir(self) -> Iterator[int]:
        """A descriptor of the folder; raises as `root`, and `OSError` if there is none."""
        with contextlib.ExitStack() as stack:
            folder = self._root()
            stack.callback(os.close, folder)
            for name in filter(None, self.spec.workdir.split("/")):
                folder = os.open(name, FOLDER, dir_fd=folder)
                stack.callback(os.close, folder)
            yield folder


def lay(folder: int, box: Sandbox) -> bool:
    """Copy what is in `folder`, a descriptor, into the workdir of a fresh box; False if none can.

    Raises:
        StartFailed: the box is gone.
        OSError: the files do not fit, or something is in the way.
    """
    host = getattr(box, "host", None)
    if not isinstance(host, HostFiles) or host.user is None or os.geteuid() != 0:
        return False
    try:
        with host.workdir() as target, _listable(folder) as source:
            copy_as(host.user, host.spec.limits.inodes, source, target)
    except SandboxDied as error:
        raise StartFailed(f"box {box.id}: {error}") from None
    except OSError as error:
        if error.errno in _REFUSED:
            return False
        if error.errno in _DO_NOT_FIT:
            raise
        raise StartFailed(f"box {box.id}: its files cannot be laid out: {error}") from error
    except TooMuch:
        most = f"more than {host.spec.limits.inodes} files"
        raise OSError(errno.EFBIG, f"{most}, or nested deeper than {MAX_DEPTH}") from None
    return True


@contextlib.contextmanager
def _listable(folder: int) -> Iterator[int]:
    """`folder` opened once more: a layer's own descriptor is only good for what is below it."""
    opened = os.open(".", FOLDER, dir_fd=folder)
    try:
        yield opened
    finally:
        os.close(opened)
