"""What an agent acts in: the contract, tools, the registry and the built-in environments.

Names are imported when they are first used, so that importing the package costs little more than
importing gymnasium.
"""

if not __name__.startswith("turnwise."):
    raise ImportError("import turnwise.envs, not envs: run `pip install -e .` first")

from importlib import import_module
from typing import TYPE_CHECKING, Any

from turnwise.envs.registry import (
    DuplicateEnv,
    EnvSpec,
    UnknownEnv,
    list_envs,
    make,
    register,
    spec,
)

if TYPE_CHECKING:
    from turnwise.envs.actions import COMMAND, FORMATS, HERMES, Action, ActionFormat, ToolCall
    from turnwise.envs.base import Env, Response, TextEnv
    from turnwise.envs.check import Report, check_env
    from turnwise.envs.code_env import CodeEnv
    from turnwise.envs.extras import MissingExtra
    from turnwise.envs.names import UnknownName
    from turnwise.envs.sandbox_env import SandboxEnv
    from turnwise.envs.schema import BadArgs
    from turnwise.envs.seeds import derive
    from turnwise.envs.signatures import ToolSchemaError
    from turnwise.envs.spaces import Unicode
    from turnwise.envs.tool_env import EpisodeView, ToolEnv
    from turnwise.envs.tools import ToolFailed, metric, reward, tool
    from turnwise.envs.types import (
        Episode,
        Group,
        Message,
        Outcome,
        Segment,
        Stop,
        Task,
        Turn,
    )

_HOMES = {
    "actions": ("COMMAND", "FORMATS", "HERMES", "Action", "ActionFormat", "ToolCall"),
    "base": ("Env", "Response", "TextEnv"),
    "check": ("Report", "check_env"),
    "code_env": ("CodeEnv",),
    "extras": ("MissingExtra",),
    "names": ("UnknownName",),
    "sandbox_env": ("SandboxEnv",),
    "schema": ("BadArgs",),
    "seeds": ("derive",),
    "signatures": ("ToolSchemaError",),
    "spaces": ("Unicode",),
    "tool_env": ("EpisodeView", "ToolEnv"),
    "tools": ("ToolFailed", "metric", "reward", "tool"),
    "types": ("Episode", "Group", "Message", "Outcome", "Segment", "Stop", "Task", "Turn"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "COMMAND",
    "FORMATS",
    "HERMES",
    "Action",
    "ActionFormat",
    "BadArgs",
    "CodeEnv",
    "DuplicateEnv",
    "Env",
    "EnvSpec",
    "Episode",
    "EpisodeView",
    "Group",
    "Message",
    "MissingExtra",
    "Outcome",
    "Report",
    "Response",
    "SandboxEnv",
    "Segment",
    "Stop",
    "Task",
    "TextEnv",
    "ToolCall",
    "ToolEnv",
    "ToolFailed",
    "ToolSchemaError",
    "Turn",
    "Unicode",
    "UnknownEnv",
    "UnknownName",
    "check_env",
    "derive",
    "list_envs",
    "make",
    "metric",
    "register",
    "reward",
    "spec",
    "tool",
]


def __getattr__(name: str) -> Any:
    if (home := _HOME_OF.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
