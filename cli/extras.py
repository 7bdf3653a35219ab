"""Which optional dependencies are installed; told from metadata, nothing is imported."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata, requires, version

_REQUIREMENT = re.compile(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]")


@cache
def extras() -> dict[str, tuple[str, ...]]:
    """Return the extras of this distribution, each with the names of what it installs."""
    found: dict[str, tuple[str, ...]] = {
        name: () for name in metadata("turnwise").get_all("Provides-Extra") or ()
    }
    for line in requires("turnwise") or ():
        if match := _REQUIREMENT.match(line):
            found[match[2]] = (*found.get(match[2], ()), match[1])
    return found


def missing(extra: str) -> list[str]:
    """Return the distributions of `extra` that are not installed."""
    return [name for name in extras()[extra] if installed(name) is None]


def installed(name: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def needed(tags: Iterable[str]) -> str:
    """Return the extra that an environment with `tags` needs: one has its name."""
    return next((tag for tag in tags if tag in extras()), "")
