"""Mounts that are in no folder of anybody: each is a descriptor, and ends with the last one.

Such a descriptor is good for opening what is below it (`dir_fd`), and for nothing else.

What a process that is killed has made so is gone with it, and no list of mounts ever shows it.
Only root may make them, and not on every kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Callable, Mapping

_OPEN_TREE, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 430, 431, 432, 442
_SET_FLAG, _SET_STRING, _SET_FD, _CREATE = 0, 1, 5, 6
_CLOEXEC = 1
_CLONE = 1 | os.O_CLOEXEC
_EMPTY_PATH = 0x1000
_READ_ONLY, _NO_SUID, _NO_DEVICES, _MAPPED = 1, 2, 4, 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)
_NOTHING = ctypes.c_char_p(None)


def mount(kind: str, options: Mapping[str, str | int]) -> int:
    """A descriptor of the root of a new file system, without set-uid programs and devices.

    Args:
        options: a string as it is, a descriptor as an int.

    Raises:
        OSError: this kernel or this user cannot; it holds what the kernel says about it.
    """
    context = _call(_FSOPEN, _text(kind), _CLOEXEC)
    try:
        for name, value in options.items():
            if isinstance(value, str):
                _call(_FSCONFIG, context, _SET_STRING, _text(name), _text(value), 0)
            else:
                _call(_FSCONFIG, context, _SET_FD, _text(name), _NOTHING, value)
        _call(_FSCONFIG, context, _CREATE, _NOTHING, _NOTHING, 0)
        return _call(_FSMOUNT, context, _CLOEXEC, _NO_SUID | _NO_DEVICES)
    except OSError as error:
        raise OSError(error.errno, f"{kind}: {error.strerror}{_said(context)}") from None
    finally:
        os.close(context)


def owned_by(tree: int, users: int) -> int:
    """The mount `tree` once more, read-only, with owners as the user namespace `users` has them.

    Raises:
        OSError: this kernel cannot map the owners of such a file system.
    """
    clone = _call(_OPEN_TREE, tree, _text(""), _CLONE | _EMPTY_PATH)
    try:
        flags = _MAPPED | _READ_ONLY | _NO_SUID | _NO_DEVICES
        attributes = struct.pack("=QQQQ", flags, 0, 0, users)
        size = len(attributes)
        _call(_MOUNT_SETATTR, clone, _text(""), _EMPTY_PATH, ctypes.c_char_p(attributes), size)
    except OSError:
        os.close(clone)
        raise
    return clone


def _text(value: str) -> ctypes.c_char_p:
    return ctypes.c_char_p(value.encode())


def _call(number: int, *arguments: int | ctypes.c_char_p) -> int:
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result: int = _syscall(ctypes.c_long(number), *words)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


_syscall: Callable[..., int] = _libc.syscall


def _said(context: int) -> str:
    """What the kernel wrote about the last failure, if anything."""
    with contextlib.suppress(OSError):
        return f" ({os.read(context, 1000).decode('utf-8', 'replace').strip()})"
    return ""
