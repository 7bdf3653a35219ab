"""What the agent wrote, as tool calls. Strict: a malformed call is an error with a position.

A call that cannot be read is never dropped and never run with `{}`; it becomes a `ToolCall` whose
`args` is None and whose `error` is `code line L col C: what is wrong`, counted from the start of
the action. Parsing never raises on text, whatever it holds. One format is one file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from turnwise.envs.calls import Action, ActionFormat, FormatMisfit, ToolCall
from turnwise.envs.formats.boxed import BOXED
from turnwise.envs.formats.command import COMMAND
from turnwise.envs.formats.fenced import FENCED
from turnwise.envs.formats.hermes import HERMES
from turnwise.envs.formats.llama3 import LLAMA3
from turnwise.envs.formats.mistral import MISTRAL
from turnwise.envs.formats.pythonic import PYTHONIC
from turnwise.envs.formats.qwen_coder import QWEN_CODER
from turnwise.envs.names import UnknownName, hint

if TYPE_CHECKING:
    from turnwise.envs.signatures import Tool

__all__ = [
    "BOXED",
    "COMMAND",
    "FENCED",
    "FORMATS",
    "HERMES",
    "LLAMA3",
    "MISTRAL",
    "PYTHONIC",
    "QWEN_CODER",
    "Action",
    "ActionFormat",
    "FormatMisfit",
    "ToolCall",
    "fitting",
]


class _Formats(dict[str, ActionFormat]):
    def __missing__(self, name: str) -> ActionFormat:
        raise UnknownName(f"no action format {name!r}; {hint(str(name), self)}")


_ALL = (HERMES, COMMAND, QWEN_CODER, LLAMA3, MISTRAL, PYTHONIC, FENCED, BOXED)
FORMATS: Mapping[str, ActionFormat] = _Formats({format.name: format for format in _ALL})
"""Action formats by name; a wrong name raises `UnknownName` with the nearest."""


def fitting(tools: Sequence[Tool]) -> list[str]:
    """Return the names of the formats that can call each of these tools."""
    names = []
    for form in FORMATS.values():
        with suppress(FormatMisfit):
            names.append(form.fitted(tools).name)
    return names
