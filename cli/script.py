"""What the files in `scripts/` share with the verbs: options, errors in one line, exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from turnwise.cli.main import answered
from turnwise.cli.options import told

Read = Callable[..., Any]
"""Like `tyro.cli`, and raises UsageError, in one line, for what it cannot understand."""


def run_script(work: Callable[[Read], int | None]) -> int:
    """Run a script and return its exit code; errors become one line on stderr, as in a verb.

    `--debug` shows tracebacks, as it does there.

    Args:
        work: takes what reads the command line, and returns the exit code; None is 0.
    """
    name = Path(sys.argv[0]).name
    return answered(name, sys.argv[1:], lambda rest: work(partial(_read, name, rest)) or 0)


def _read(name: str, rest: list[str], kind: Any, args: list[str] | None = None, **how: Any) -> Any:
    """Return the options of a script; `--help` prints and exits."""
    import tyro

    arguments = rest if args is None else args
    return told(name, lambda: tyro.cli(kind, prog=name, args=arguments, **how))
