"""What an environment reads from outside: time, a network. Taped, so that a replay reads the same.

    @tool
    def weather(self, city: str) -> str:
        '''Ask for the weather.'''
        at = self.clock.now()
        answer = self.taped("weather", lambda: fetch(city))
        return f"{at:.0f}: {answer}"

Every read goes into `info["nondet"]` of its reset or step, and from there into the record. A replay
feeds it back, so that nothing is asked again.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from turnwise.envs.tools import ToolFailed
from turnwise.envs.types import canonical_json

Read = Mapping[str, Any]
"""`{"name", "value"}`; `failed` in place of the value where the read raised `ToolFailed`."""


class TapeError(RuntimeError):
    """What was read cannot be taped, or a replay reads something else than was read then."""


class Late(RuntimeError):
    """A call went on after its deadline and is refused what a later one would see."""


class Call:
    """One call with a deadline; `late` once its deadline has passed. See deadlines.py."""

    __slots__ = ("_late", "lock")

    def __init__(self) -> None:
        self._late = False
        self.lock = threading.RLock()
        """Held while something is done that must not be done late."""

    @property
    def late(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._late

    def give_up(self) -> None:
        """From now on it is late."""
        with self.lock:
            self._late = True


CALL: contextvars.ContextVar[Call | None] = contextvars.ContextVar("CALL", default=None)


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Do something in the name of the present call, if there is one, before its deadline.

    Raises:
        Late: the deadline has passed.
    """
    call = CALL.get()
    with call.lock if call is not None else contextlib.nullcontext():
        if call is not None and call.late:
            raise Late("this call's deadline has passed; nobody waits for it")
        yield


class Tape:
    """The reads of one episode, by turn; 0 is the reset."""

    def __init__(self) -> None:
        self.turns: dict[int, list[Read]] = {}
        self._now: list[Read] = []
        self._fed: deque[Read] | None = None
        self._calls = 0

    def read(self, name: str, function: Callable[[], Any]) -> Any:
        """Return what `function` gives and note it, or what is fed in its place."""
        live = self._fed is None
        read = _asked(name, function) if live else {}
        with in_time():
            read = read if live else self._next(name)
            self._now.append(read)
        if failed := read.get("failed"):
            raise ToolFailed(failed[1], failed[0])
        return read["value"]

    def timed(self, name: str) -> Read:
        """Return the mark of a call that has a deadline, for `note` if it runs out of time."""
        self._calls += 1
        return {"name": f"timeout {name}", "value": self._calls}

    def note(self, mark: Read) -> None:
        """Note that the call of `mark` has run out of time."""
        self._now.append(mark)

    def wind_past(self, mark: Read) -> bool:
        """Return whether the call of `mark` ran out of time when this was recorded.

        What it had read by then is passed over.
        """
        if self._fed is None or mark not in self._fed:
            return False
        while (read := self._fed.popleft()) != mark:
            self._now.append(read)
        self._now.append(mark)
        return True

    @property
    def fed(self) -> bool:
        """Whether this turn reads from the tape and not from the world."""
        return self._fed is not None

    def begin(self) -> None:
        """Forget the last episode."""
        self.turns, self._now, self._calls = {}, [], 0

    def feed(self, reads: Iterable[Read]) -> None:
        """Let the next turn read these."""
        self._fed, self._now, self._calls = deque(reads), [], 0

    def take(self, turn: int) -> list[Read]:
        """End a turn: return what it read, and let the next one read from the world."""
        reads, self._now, self._fed, self._calls = self._now, [], None, 0
        if reads:
            self.turns[turn] = reads
        return reads

    def _next(self, name: str) -> Read:
        if not self._fed:
            raise TapeError(f"{name!r} is read, and nothing more was when this was recorded")
        if (read := self._fed.popleft())["name"] != name:
            raise TapeError(f"{name!r} is read where {read['name']!r} was when this was recorded")
        return read


def _asked(name: str, function: Callable[[], Any]) -> Read:
    try:
        value = function()
    except ToolFailed as error:
        return {"name": name, "failed": [error.code, str(error)]}
    try:
        text = canonical_json(value)  # keys sorted, as the record gives them back
        text.encode()
    except (TypeError, ValueError) as error:
        raise TapeError(f"what {name!r} gave cannot be taped as JSON: {error}") from error
    return {"name": name, "value": json.loads(text)}


class Clock:
    """Wall-clock time that a replay reads as it was. An environment has it as `self.clock`."""

    __slots__ = ("_taped",)

    def __init__(self, taped: Callable[[str, Callable[[], Any]], Any]) -> None:
        self._taped = taped

    def now(self) -> float:
        """Return seconds since 1970."""
        value: float = self._taped("clock", time.time)
        return value


class Taped:
    """The part of `Env` that reads from outside."""

    _tape: Tape | None = None

    @property
    def tape(self) -> Tape:
        """What this episode reads from outside; made when it is first needed."""
        if self._tape is None:
            self._tape = Tape()
        return self._tape

    @property
    def clock(self) -> Clock:
        """The time: `self.clock.now()`. Never use `time.time()` for what an agent can see."""
        return Clock(self.taped)

    def taped(self, name: str, function: Callable[[], Any]) -> Any:
        """Return what `function()` gives, as JSON gives it back, and note it for replay.

        As JSON: tuples become lists, and the keys of dicts are sorted.

        For every source that another run could answer otherwise: a network, a file of the host.
        A `ToolFailed` that it raises is noted, too.

        Args:
            name: Of the source, in the record: `weather`.
            function: Called with nothing; not called in a replay.

        Raises:
            TapeError: JSON cannot hold the value, or a replay reads something else here.
        """
        return self.tape.read(name, function)

    def feed(self, reads: Iterable[Read]) -> None:
        """Let the next `reset` or `step` read these, which `info["nondet"]` once held."""
        self.tape.feed(reads)

    def reads(self) -> dict[int, list[Read]]:
        """Return what this episode has read, by turn; 0 is the reset."""
        return dict(self._tape.turns) if self._tape else {}

    def take_reads(self, turn: int, info: dict[str, Any]) -> None:
        """End turn `turn`, 0 for the reset; what it has read goes into `info["nondet"]`.

        `TextEnv` does it; an `Env` that shapes its own answers calls it where it reads anything.
        """
        if self._tape is not None and (reads := self._tape.take(turn)):
            info["nondet"] = reads
