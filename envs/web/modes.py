"""The ways in which a `WebEnv` can be played."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from turnwise.envs.names import UnknownName, hint
from turnwise.envs.web.site import Session
from turnwise.envs.web.tab import Tab, TextTab


@dataclass(frozen=True, slots=True)
class Mode:
    """How tabs are opened, and whether a step in them is quick enough to run inline."""

    name: str
    open: Callable[[Session], Tab]
    fast: bool


def _chrome(session: Session) -> Tab:
    from turnwise.envs.web.chrome import ChromeTab

    return ChromeTab(session)


class _Modes(dict[str, Mode]):
    def __missing__(self, name: str) -> Mode:
        raise UnknownName(f"no mode {name!r}; {hint(str(name), self)}")


MODES: Mapping[str, Mode] = _Modes(
    text=Mode("text", TextTab, fast=True), browser=Mode("browser", _chrome, fast=False)
)
"""Modes by name; a wrong name raises `UnknownName` with the nearest."""
