"""What the agent wrote, as tool calls. Strict: a malformed call is an error with a position.

A call that cannot be read is never dropped and never run with `{}`; it becomes a `ToolCall` whose
`args` is None and whose `error` is `code line L col C: what is wrong`, counted from the start of
the action. Parsing never raises on text, whatever it holds. One format is one file.
"""

from __future__ import annotations

from collections.abc import Mapping

from turnwise.envs.calls import Action, ActionFormat, ToolCall
from turnwise.envs.formats.command import COMMAND
from turnwise.envs.formats.hermes import HERMES
from turnwise.envs.names import UnknownName, hint

__all__ = ["COMMAND", "FORMATS", "HERMES", "Action", "ActionFormat", "ToolCall"]


class _Formats(dict[str, ActionFormat]):
    def __missing__(self, name: str) -> ActionFormat:
        raise UnknownName(f"no action format {name!r}; {hint(str(name), self)}")


FORMATS: Mapping[str, ActionFormat] = _Formats(hermes=HERMES, command=COMMAND)
"""Action formats by name; a wrong name raises `UnknownName` with the nearest."""
