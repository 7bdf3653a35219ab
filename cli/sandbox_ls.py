"""`turnwise sandbox ls | gc | image`: what there is, the sweep, and the image of docker boxes."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.text import Text

from turnwise.cli.display import NONE, console, print_json, table

if TYPE_CHECKING:
    from turnwise.cli.sandbox import Gc, Image, Ls
    from turnwise.sandboxes.survey import Found


def show(options: Ls, *, json: bool) -> int:
    """Print every box and every leftover and return the exit code."""
    from turnwise.sandboxes.survey import survey

    found, leases = survey(), _leases()
    if json:
        print_json({"found": [asdict(entry) for entry in found], "leases": leases})
        return 0
    out = console()
    if not found and not leases:
        out.print("no boxes, and nothing left of any")
    if found:
        heads = ("kind", "id", "owner", "age", "MB", "ends in")
        out.print(table(*heads, rows=map(_cells, found), right=heads[3:]))
    for lease in leases:
        out.print(Text(f"lease  {lease['id']}  {lease['backend']}  age {_time(lease['age_s'])}"))
    if any(not entry.alive for entry in found):
        out.print(Text("\nthe dead left something: turnwise sandbox gc", style="dim"))
    return 0


def _leases() -> list[dict[str, Any]]:
    """What the server at TURNWISE_SANDBOX_URL has lent; nothing where none is named."""
    from turnwise.sandboxes.remote import list_leases, url_is_set

    return list_leases() if url_is_set() else []


def _cells(found: Found) -> list[str | Text]:
    who = Text(str(found.owner_pid or "?"))
    if not found.alive:
        who.append(" dead", style="red")
    memory = NONE if found.memory_mb is None else f"{found.memory_mb:.0f}"
    return [found.kind, found.id, who, _time(found.age_s), memory, _time(found.left_s)]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    if abs(seconds) < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if abs(seconds) < 7200 else f"{seconds / 3600:.0f} h"


def collect(options: Gc, *, json: bool) -> int:
    """Sweep, print what was removed, and return the exit code."""
    from turnwise.sandboxes.reaper import sweep

    swept = sweep(containers=True)
    if json:
        print_json(asdict(swept))
        return 0
    out = console()
    for name in (*swept.boxes, *swept.containers, *swept.folders):
        out.print(Text(f"removed {name}"))
    counts = f"{len(swept.boxes)} boxes, {len(swept.containers)} containers"
    out.print(Text(f"removed {counts}, {len(swept.folders)} folders, {swept.cgroups} cgroups"))
    return 0


def build(options: Image, *, json: bool) -> int:
    """Make or fetch the image, print its name, and return the exit code."""
    from turnwise.cli.sandbox_image import build_image

    name = build_image(
        options.tag or None,
        dockerfile=options.dockerfile,
        image=options.image or None,
        packages=options.packages,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if json:
        print_json({"image": name})
    else:
        console().print(Text(f"ready: open_sandbox('docker', image={name!r})"))
    return 0
