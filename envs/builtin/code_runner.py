"""Inside the box: calls functions of a program and says what each returned.

Its text is what runs there, in a Python of its own with a fixed hash seed, which forks one process
per run. It is given inputs and knows no answers, so that the code that it calls has nothing to
find: whoever asked compares on the host. Standard library of Python 3.8 only.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.machinery
import json
import os
import re
import resource
import select
import signal
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

LENGTH = struct.Struct(">I")
MAX_SHOWN = 4000
"""Characters of one value; a longer one is not shown, and equals nothing."""
MAX_DEPTH = 20
MEMORY_BYTES = 512 << 20
"""Address space of the program, most of which Python itself takes."""
TICK_S = 0.01
FOLDER = "/tmp/run"
"""Where the program seems to be; nothing is written there."""
ADDRESS = re.compile(r"0x[0-9a-f]+")


class TooLong(Exception):
    """A value whose text is longer than anybody reads; shared parts can make it exponential."""


def shown(value: Any) -> str:
    """Return the text of a value of plain types; no method of the value's own is called."""
    try:
        return _shown(value, 0, [MAX_SHOWN])
    except TooLong:
        return f"<a {type(value).__name__} of more than {MAX_SHOWN} characters>"


def _shown(value: Any, depth: int, left: list[int]) -> str:
    kind = type(value)
    left[0] -= 2
    if left[0] < 0:
        raise TooLong
    if kind in (list, tuple, set, frozenset, dict) and depth < MAX_DEPTH:
        return _many(value, kind, depth + 1, left)
    if value is None or kind in (bool, float, str):
        text = repr(value)
    elif kind is int:
        text = repr(value) if value.bit_length() < 4000 else "<a huge int>"
    else:
        text = "..." if depth == MAX_DEPTH else f"<{str(kind.__name__)[:40]}>"
    left[0] -= len(text)
    if left[0] < 0:
        raise TooLong
    return text


def _many(value: Any, kind: type, depth: int, left: list[int]) -> str:
    parts = [_shown(item, depth, left) for item in value]
    if kind is dict:
        values = [_shown(item, depth, left) for item in value.values()]
        return "{" + ", ".join(f"{k}: {v}" for k, v in zip(parts, values)) + "}"  # noqa: B905
    if kind is list:
        return "[" + ", ".join(parts) + "]"
    if kind is tuple:
        return "(" + ", ".join(parts) + (",)" if len(parts) == 1 else ")")
    text = "{" + ", ".join(sorted(parts)) + "}" if parts else ""
    return text if kind is set and parts else f"{kind.__name__}({text})"


def told(error: BaseException, folder: str) -> str:
    """Return what was raised and where in the program, without addresses and paths of the box."""
    message = (str(error.msg if isinstance(error, SyntaxError) else error).splitlines() or [""])[0]
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    text = ADDRESS.sub("0x...", text).replace(folder + "/", "")[:200]
    where, trace = "", error.__traceback__
    if isinstance(error, SyntaxError) and error.filename and folder in error.filename:
        where = f" ({os.path.basename(error.filename)} line {error.lineno})"
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith(folder + "/"):
            where = f" ({os.path.basename(name)} line {trace.tb_lineno})"
        trace = trace.tb_next
    return text + where


def outcome(call: Any, folder: str) -> list[str]:
    """Call `[module, function, arguments]`; return `["value", text]` or `["raised", text]`."""
    module, function, args = call
    try:
        return ["value", shown(getattr(importlib.import_module(module), function)(*args))]
    except BaseException as error:
        return ["raised", told(error, folder)]


class Texts:
    """Imports the program from its texts, under the names of files in `folder`.

    Writing files, finding and removing them took longer than to run most programs.
    """

    def __init__(self, files: dict[str, str], folder: str) -> None:
        self.files, self.folder = files, folder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The module `name`, if it is one of the program's."""
        if f"{name}.py" not in self.files:
            return None
        place = f"{self.folder}/{name}.py"
        spec = importlib.machinery.ModuleSpec(name, self, origin=place)  # type: ignore[arg-type]
        spec.has_location = True
        return spec

    def create_module(self, spec: Any) -> None:
        """Let Python make an empty one."""

    def exec_module(self, module: Any) -> None:
        """Run the text as importing it from a file does."""
        data = self.files[f"{module.__name__}.py"].encode("utf-8")
        exec(compile(data, module.__file__, "exec", dont_inherit=True), module.__dict__)


def play(request: Any, folder: str, say: Callable[[Any], object]) -> None:
    """Say the outcome of each call of the program in turn, then None."""
    sys.meta_path.insert(0, Texts(request["files"], folder))
    for call in request["calls"]:
        say(outcome(call, folder))
    say(None)


class Spare:
    """A process that waits for a program to run, and runs it once.

    It is made while nobody waits: to make and to end one takes longer than most programs do.
    """

    def __init__(self) -> None:
        asked, self.ask = os.pipe()
        self.said, say = os.pipe()
        self.pid, self.status = os.fork(), -1
        if self.pid == 0:
            os.close(self.ask)
            os.close(self.said)
            child(asked, say)
        os.close(asked)
        os.close(say)

    def alive(self) -> bool:
        """Whether it still waits; an earlier program's process, if it hid, can have ended it."""
        return os.waitpid(self.pid, os.WNOHANG)[0] == 0

    def forget(self) -> None:
        """Close what led to one that is gone."""
        os.close(self.ask)
        os.close(self.said)

    def run(self, request: bytes, wall_s: float) -> dict[str, str]:
        """Have it run the program, end it; return the outcomes and how it came to its end."""
        with contextlib.suppress(BrokenPipeError), open(self.ask, "wb") as pipe:
            pipe.write(request)
        text, ended = _listen(self.said, time.monotonic() + wall_s)
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)  # also one that was stopped before its `setsid`
            os.killpg(self.pid, signal.SIGKILL)
        if ended == "gone" and self._out_of_time():
            ended = "late"
        return {"said": text.decode("utf-8", "replace"), "ended": ended}

    def _out_of_time(self) -> bool:
        self.bury()
        ends = (signal.SIGPROF, signal.SIGXCPU)
        return os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) in ends

    def bury(self) -> None:
        """Wait until it is gone."""
        if self.status < 0:
            self.status = os.waitpid(self.pid, 0)[1]
            os.close(self.said)


def child(asked: int, say: int) -> NoReturn:
    """The process in which the program runs, and may do to itself what it likes."""
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        with open(asked, "rb") as pipe:
            request = json.loads(pipe.read())
        signal.setitimer(signal.ITIMER_PROF, request["cpu_s"])  # ends it; no load can hasten it

        def tell(value: Any) -> None:
            os.write(say, json.dumps(value).encode() + b"\n")

        play(request, FOLDER, tell)
    finally:
        os._exit(0)


def _listen(pipe: int, deadline: float) -> tuple[bytes, str]:
    """Read what the process says until it is `done`, `gone` or `late`."""
    parts, size = [], 0
    while time.monotonic() < deadline and size < 1 << 19:
        if not select.select([pipe], [], [], TICK_S)[0]:
            continue
        data = os.read(pipe, 1 << 16)
        parts.append(data)
        size += len(data)
        if not data or data.endswith(b"null\n"):
            return b"".join(parts), "done" if data else "gone"
    return b"".join(parts), "late"


def serve() -> NoReturn:
    """Answer requests on standard input, each one a length and JSON, until it is closed."""
    gc.freeze()  # what is here by now is shared with the forked processes for good
    spare = Spare()
    while True:
        head = sys.stdin.buffer.read(LENGTH.size)
        if len(head) < LENGTH.size:
            os._exit(0)
        request = sys.stdin.buffer.read(LENGTH.unpack(head)[0])
        if not spare.alive():
            spare.forget()
            spare = Spare()
        answer = json.dumps(spare.run(request, json.loads(request)["wall_s"])).encode()
        sys.stdout.buffer.write(LENGTH.pack(len(answer)) + answer)
        sys.stdout.buffer.flush()
        spare.bury()
        spare = Spare()
