"""Look names up so that a wrong one is answered with the nearest right one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
