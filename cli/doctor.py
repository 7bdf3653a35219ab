"""`turnwise doctor`: what this machine has, and how to get what it lacks."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.text import Text

from turnwise.cli.display import console, print_json, table, verdict
from turnwise.cli.extras import extras, installed, missing
from turnwise.cli.failures import INFRASTRUCTURE

DISK_GB = 2.0
"""A demo run with its records and checkpoints needs far less."""


@dataclass(frozen=True)
class Options:
    """Look at Python, torch, the sandboxes, extras and disk, and say how to mend what is missing.

    Exit 4 if nothing here can run an agent's commands safely.

    example:
      turnwise doctor
    """

    json: bool = False
    """Print a JSON object."""


@dataclass(frozen=True)
class Sign:
    """One thing that was looked at."""

    name: str
    good: bool | None
    """None for what is optional and not there."""
    what: str
    mend: str = ""
    """The command that helps; empty where nothing is needed."""


def run(options: Options) -> int:
    """Print every sign and return the exit code."""
    sandboxes = list(_sandboxes())
    safe = any(sign.good for sign in sandboxes)
    signs = [
        _python(),
        _torch(),
        _library("transformers"),
        *sandboxes,
        *_extras(),
        _disk(),
        _cores(),
    ]
    if options.json:
        print_json({"safe_sandbox": safe, "signs": [asdict(sign) for sign in signs]})
    else:
        _show(signs, safe)
    return 0 if safe else INFRASTRUCTURE


def _show(signs: list[Sign], safe: bool) -> None:
    out = console()
    out.print(table("", "", "", rows=[[s.name, verdict(s.good), s.what] for s in signs]))
    wanted = [sign for sign in signs if sign.mend]
    if wanted:
        out.print()
        out.print(table("to get", "run", rows=[[s.name, s.mend] for s in wanted]))
    if not safe:
        out.print(Text("\nNothing here isolates an agent's commands.", style="bold red"))


def _python() -> Sign:
    return Sign("python", True, f"{platform.python_version()} at {sys.executable}")


def _torch() -> Sign:
    mend = "pip install 'turnwise[train]'"
    if (version := installed("torch")) is None:
        return Sign("torch", False, "not installed: no training, no models", mend)
    try:
        import torch
    except (ImportError, OSError) as error:
        return Sign("torch", False, f"{version} does not load: {error}", mend)
    if torch.cuda.is_available():
        return Sign("torch", True, f"{version} on {torch.cuda.get_device_name()}")
    return Sign("torch", True, f"{version} on the CPU, {torch.get_num_threads()} threads")


def _library(name: str) -> Sign:
    version = installed(name)
    if version is None:
        return Sign(name, False, "not installed", "pip install 'turnwise[train]'")
    return Sign(name, True, version)


def _sandboxes() -> Iterator[Sign]:
    """Probe each backend for real: a program and some attacks in a fresh box."""
    from turnwise.sandboxes.open import BACKENDS
    from turnwise.sandboxes.probe import try_backend

    for name, backend in BACKENDS.items():
        if not backend.isolates:
            yield Sign(f"sandbox {name}", None, "does not isolate; used only by name")
            continue
        verdict = try_backend(name, backend.open)
        what = "isolates" if verdict.ok else "; ".join(verdict.failures)
        yield Sign(f"sandbox {name}", verdict.ok, what, "" if verdict.ok else _mend(name))


def _mend(backend: str) -> str:
    """Return the command that installs a backend; the probe's text holds other cures."""
    if backend == "bubblewrap" and shutil.which("bwrap") is None:
        return "sudo apt-get install bubblewrap"
    return ""


def _extras() -> Iterator[Sign]:
    for name in extras():
        absent = missing(name)
        what = f"lacks {', '.join(absent)}" if absent else "installed"
        mend = f"pip install 'turnwise[{name}]'" if absent else ""
        yield Sign(f"extra {name}", None if absent else True, what, mend)


def _disk() -> Sign:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    good = free >= DISK_GB
    mend = "" if good else "free some space, or give --out a folder on another disk"
    return Sign("disk", good, f"{free:.0f} GB free here", mend)


def _cores() -> Sign:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Sign("cores", True, f"{usable} usable")
