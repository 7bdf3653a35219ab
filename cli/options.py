"""A verb's options: a frozen dataclass, read from the command line by tyro."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import tyro

T = TypeVar("T")
_FRAME = re.compile(r"[╭╮╰╯│─]+|\x1b\[[0-9;]*m")


class UsageError(ValueError):
    """The command line cannot be understood; the message says what would be right."""


def parse(options: type[T], verb: str, arguments: Sequence[str]) -> T:
    """Return the options of `turnwise <verb>`; `--help` prints and exits.

    Raises:
        UsageError: an argument is missing, unknown or of the wrong type.
        SystemExit: after `--help`.
    """
    return told(
        f"turnwise {verb}",
        lambda: tyro.cli(
            _quieter(options),
            prog=f"turnwise {verb}",
            args=list(arguments),
            config=(tyro.conf.FlagCreatePairsOff,),
        ),
    )


def told(command: str, read: Callable[[], T]) -> T:
    """Return what `read` makes of the command line, and have one line in place of tyro's frame.

    Raises:
        UsageError: an argument is missing, unknown or of the wrong type.
        SystemExit: after `--help`.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return read()
    except SystemExit as exit:
        if not exit.code:
            raise
    except ValueError as error:  # from the dataclass itself
        raise UsageError(str(error)) from None
    raise UsageError(f"{one_line(said.getvalue())}; see `{command} --help`")


def _quieter(options: type[T]) -> type[T]:
    """Return a subclass whose help leaves out defaults that say nothing: off, empty, none."""
    hints = get_type_hints(options, include_extras=True)
    quiet = {
        option.name: Annotated[hints[option.name], _quiet(hints[option.name])]
        for option in fields(options)  # type: ignore[arg-type]
        if option.default in (None, "", (), "{}") or option.default is False
    }
    body = {"__annotations__": quiet, "__doc__": options.__doc__, "__module__": options.__module__}
    made = type(options.__name__, (options,), body)
    return dataclass(frozen=True, kw_only=True)(made)


def _quiet(hint: Any) -> object:
    """Return the look of one option; `FLOAT` rather than `{None}|FLOAT` for one that may be."""
    kinds = [kind.__name__ for kind in get_args(hint) if isinstance(kind, type)]
    if "NoneType" not in kinds:
        return tyro.conf.arg(help_behavior_hint="")
    return tyro.conf.arg(help_behavior_hint="", metavar=kinds[0].upper())


def one_line(framed: str) -> str:
    """Return what tyro wrote into a frame as one line, without its title and its hints on help."""
    lines = [line for line in framed.splitlines() if "╭" not in line]
    text = " ".join(_FRAME.sub(" ", " ".join(lines)).split())
    text = re.sub(r"^Error parsing (?:\w+|__tyro[\w.-]*): ", "", text)
    return re.split(r" (?:For full helptext|Argument helptext)", text)[0]


def json_object(text: str, option: str) -> dict[str, Any]:
    """Return the object that the text of `option` holds.

    Raises:
        UsageError: it is not a JSON object.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{option} must be a JSON object, got {text!r}: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{option} must be a JSON object, got {text!r}")
    return value
