"""The guest's files, compiled for the Python that a box runs: no start has to parse them."""

from __future__ import annotations

import json
import struct
import subprocess
from functools import cache
from pathlib import PurePosixPath

from turnwise.sandboxes.inside import guest_files

_COMPILE = """
import importlib.util, json, marshal, struct, sys
for name, text in json.load(sys.stdin).items():
    code = compile(text, name, "exec", dont_inherit=True)
    data = importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)
    sys.stdout.buffer.write(struct.pack(">I", len(data)) + data)
"""


@cache
def compiled_guest(python: str) -> dict[str, bytes]:
    """As `guest_files`, but compiled by `python`; the files themselves where that fails."""
    files = guest_files()
    asked = json.dumps({name: text.decode() for name, text in files.items()}).encode()
    argv = [python, "-I", "-S", "-B", "-c", _COMPILE]
    try:
        ran = subprocess.run(
            argv, input=asked, capture_output=True, env={}, cwd="/", timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return files
    names = [str(PurePosixPath(name).with_suffix(".pyc")) for name in files]
    try:
        return dict(zip(names, _parts(ran.stdout), strict=True))
    except (ValueError, struct.error):  # it said something else, too
        return files


def _parts(data: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        end = at + 4 + struct.unpack_from(">I", data, at)[0]
        found.append(data[at + 4 : end])
        at = end
    return found
