"""Another day: the time of day of this process put ahead, to show who reads it."""

from __future__ import annotations

import datetime
import sys
import time
from typing import Any

_now, _now_ns = time.time, time.time_ns
_localtime, _gmtime, _strftime = time.localtime, time.gmtime, time.strftime
_ahead_s = 0


def put_ahead(seconds: int) -> None:
    """Put the clock ahead for every module that is imported from now on, and for `time.time`.

    Our sandboxes are spared, since they share theirs with the rest of the machine. For a process
    that was made for it: it cannot be undone.
    """
    global _ahead_s
    _ahead_s = seconds
    time.time = lambda: _now() + _ahead()
    time.time_ns = lambda: _now_ns() + _ahead() * 10**9
    time.localtime = lambda at=None: _localtime(_now() + _ahead() if at is None else at)
    time.gmtime = lambda at=None: _gmtime(_now() + _ahead() if at is None else at)
    time.strftime = lambda form, at=None: _strftime(form, time.localtime() if at is None else at)
    datetime.datetime, datetime.date = Datetime, Date  # type: ignore[misc]


def _ahead() -> int:
    """Return by how much the clock of whoever called our caller is ahead."""
    who = sys._getframe(2).f_globals.get("__name__", "")
    return 0 if who.startswith("turnwise.sandboxes") else _ahead_s


class _LikeTheRealOne(type):
    """The class of a stand-in: instances of the real class are its instances, too."""

    def __instancecheck__(cls, value: object) -> bool:
        real = cls.__mro__[1] if cls in (Datetime, Date) else cls
        return type.__instancecheck__(real, value)


class Datetime(datetime.datetime, metaclass=_LikeTheRealOne):
    """`datetime.datetime`, ahead."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        """Return the time that it is on that day."""
        return cls.fromtimestamp(_now() + _ahead(), tz)

    @classmethod
    def utcnow(cls) -> Any:
        """Return the same in UTC, without a zone."""
        return cls.fromtimestamp(_now() + _ahead(), datetime.UTC).replace(tzinfo=None)

    @classmethod
    def today(cls) -> Any:
        """Return the time that it is on that day."""
        return cls.fromtimestamp(_now() + _ahead())


class Date(datetime.date, metaclass=_LikeTheRealOne):
    """`datetime.date`, ahead."""

    @classmethod
    def today(cls) -> Any:
        """Return that day."""
        return cls.fromtimestamp(_now() + _ahead())


for _made, _name in ((Datetime, "datetime"), (Date, "date")):
    _made.__name__ = _made.__qualname__ = _name
    _made.__module__ = "datetime"
