"""`turnwise sandbox shell`: a fresh box for one program, or for the lines that somebody types."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from turnwise.cli.display import print_json
from turnwise.sandboxes.base import ExecResult, NetPolicy, Sandbox
from turnwise.sandboxes.open import open_sandbox

if TYPE_CHECKING:
    from turnwise.cli.sandbox import Shell


def run(options: Shell, *, json: bool) -> int:
    """Open a box, run what was asked, and return the exit code of the last of it."""
    net = NetPolicy("proxy", options.allow) if options.allow else NetPolicy()
    code = 0
    with open_sandbox(options.backend, image=options.image or None, net=net) as box:
        if options.argv:
            result = box.exec(options.argv, stdin=_input(), timeout_s=options.timeout_s)
            return _show(result, json)
        for line in _lines(box):
            code = _show(box.shell(line, timeout_s=options.timeout_s), json)
    return code


def _input() -> bytes:
    """What is piped in; a terminal is not read, since the program gets its input in one piece."""
    return b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()


def _lines(box: Sandbox) -> Iterator[str]:
    """Lines from standard input until it ends or one says `exit`; with a prompt on a terminal."""
    prompt = f"{box.id} $ " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt)
        except EOFError:
            return
        if line.strip() == "exit":
            return
        if line.strip():
            yield line


def _show(result: ExecResult, json: bool) -> int:
    if json:
        texts = {"stdout": result.stdout.decode("utf-8", "replace"),
                 "stderr": result.stderr.decode("utf-8", "replace")}  # fmt: skip
        print_json(asdict(result) | texts)
        return result.exit_code
    for stream, data in ((sys.stdout, result.stdout), (sys.stderr, result.stderr)):
        stream.flush()
        stream.buffer.write(data)
        stream.flush()
    if result.timed_out:
        print("it was ended: its time was over", file=sys.stderr)
    return result.exit_code
