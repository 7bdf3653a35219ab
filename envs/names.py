"""Look names up so that a wrong one is answered with the nearest right one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence


class UnknownName(LookupError):
    """A name that is in no table; the message holds the nearest one that is."""


def hint(name: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'?`, or the known names where none is near.

    Case is ignored: `filehunt` finds `FileHunt`.
    """
    folded = {entry.lower(): entry for entry in known}
    if close := difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5):
        return f"did you mean {folded[close[0]]!r}?"
    return f"known: {', '.join(sorted(folded.values())) or 'none'}"


def known_names(what: str, names: Sequence[str], known: Collection[str]) -> tuple[str, ...]:
    """Return the names of an argument.

    Raises:
        UnknownName: one is none of `known`; the message names the nearest.
        TypeError: they are one str, which is a sequence of letters.
    """
    if isinstance(names, str):
        raise TypeError(f"{what}s are a tuple of names, got {names!r}; write ({names!r},)")
    for name in names:
        if name not in known:
            raise UnknownName(f"no {what} {name!r}; {hint(str(name), known)}")
    return tuple(names)
