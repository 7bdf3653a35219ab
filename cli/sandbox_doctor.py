"""`turnwise sandbox doctor`: which backends isolate here, what the walls are made of, the cures."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from turnwise.cli.display import console, print_json, table, verdict
from turnwise.cli.failures import INFRASTRUCTURE

if TYPE_CHECKING:
    from turnwise.cli.sandbox import Doctor

_CURE = re.compile(r"run[^`;]*`(?P<quoted>.+?)`|(?:run:|install it:) (?P<bare>.+?)(?:\s\(|[;)]|$)")


@dataclass(frozen=True)
class Sign:
    """One thing that was looked at."""

    name: str
    good: bool | None
    """None for what nobody asked for, such as a server where none is named."""
    what: str
    mend: str = ""
    """The command that helps; empty where nothing is needed or none is known."""


def examine(options: Doctor, *, json: bool) -> int:
    """Probe every backend, print what was found, and return the exit code."""
    backends = list(_backends())
    signs = [*backends, _cgroups(), _leftovers()]
    chosen = next((sign.name for sign in backends if sign.good), None)
    if json:
        print_json({"auto": chosen, "signs": [asdict(sign) for sign in signs]})
    else:
        _show(signs, chosen)
    return 0 if chosen else INFRASTRUCTURE


def _show(signs: list[Sign], chosen: str | None) -> None:
    out = console()
    out.print(table("", "", "", rows=[[s.name, verdict(s.good), s.what] for s in signs]))
    wanted = [sign for sign in signs if sign.mend]
    if wanted:
        out.print()
        out.print(table("to mend", "run", rows=[[s.name, s.mend] for s in wanted]))
    if chosen:
        out.print(Text(f"\nopen_sandbox('auto') takes {chosen}"))
    else:
        out.print(Text("\nNothing here isolates an agent's commands.", style="bold red"))


def _backends() -> Iterator[Sign]:
    """In the order of `auto`; each is tried for real, whatever an earlier probe found."""
    from turnwise.sandboxes.open import BACKENDS
    from turnwise.sandboxes.probe import try_backend
    from turnwise.sandboxes.remote import url_is_set

    for name, backend in BACKENDS.items():
        if not backend.isolates:
            yield Sign(name, None, "does not isolate; used only by name, never by auto")
        elif name == "remote" and not url_is_set():
            yield Sign(name, None, "TURNWISE_SANDBOX_URL is not set")
        else:
            began = time.monotonic()
            tried = try_backend(name, backend.open)
            took = f"isolates; probed in {time.monotonic() - began:.1f} s"
            why = "; ".join(tried.failures)
            yield Sign(name, tried.ok, took if tried.ok else why, "" if tried.ok else cure(why))


def cure(text: str) -> str:
    """Return the command that an error message names after `run`, or an empty text."""
    match = _CURE.search(text)
    return (match["quoted"] or match["bare"]).strip() if match else ""


def _cgroups() -> Sign:
    from turnwise.sandboxes import cgroup
    from turnwise.sandboxes.base import Limits

    group = cgroup.make(os.getpid(), Limits())
    group.remove()
    lacks = [name for name in cgroup.CONTROLLERS if name not in group.held]
    if not lacks:
        return Sign("limits", True, "memory, pids and cpu by cgroups")
    held = "a watchdog thread, process limits and CPU affinity hold"
    return Sign("limits", True, f"no cgroup for {', '.join(lacks)}; {held} them instead")


def _leftovers() -> Sign:
    from turnwise.sandboxes.survey import survey

    found = survey()
    dead = sum(not entry.alive for entry in found)
    what = f"{len(found) - dead} boxes live, {dead} things left by the dead"
    return Sign("leftovers", not dead, what, "turnwise sandbox gc" if dead else "")
