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
    from turnwise.envs.actions import (
        COMMAND,
        FORMATS,
        HERMES,
        Action,
        ActionFormat,
        FormatMisfit,
        ToolCall,
    )
    from turnwise.envs.adapters.gymnasium import from_gymnasium
    from turnwise.envs.base import EndedEarly, Env, Response, TextEnv
    from turnwise.envs.check import Report, check_env
    from turnwise.envs.clock import TapeError
    from turnwise.envs.code_env import CodeEnv
    from turnwise.envs.extras import MissingExtra
    from turnwise.envs.multi_agent import MultiAgentEnv
    from turnwise.envs.names import UnknownName
    from turnwise.envs.sandbox_env import SandboxEnv
    from turnwise.envs.schema import BadArgs
    from turnwise.envs.seat import as_single_agent
    from turnwise.envs.seeds import derive
    from turnwise.envs.signatures import ToolSchemaError
    from turnwise.envs.snapshot import RestoreDiverged, Unsavable, WrongSnapshot
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
    from turnwise.envs.vector import VecEnv, make_vec
    from turnwise.envs.web.env import WebEnv
    from turnwise.envs.wrapper import Wrapper
    from turnwise.envs.wrappers import ActionSlips, ObservationBudget, TimeLimit, ToolFailures

_HOMES = {
    "adapters.gymnasium": ("from_gymnasium",),
    "actions": (
        *("COMMAND", "FORMATS", "HERMES"),
        *("Action", "ActionFormat", "FormatMisfit", "ToolCall"),
    ),
    "base": ("EndedEarly", "Env", "Response", "TextEnv"),
    "check": ("Report", "check_env"),
    "clock": ("TapeError",),
    "code_env": ("CodeEnv",),
    "extras": ("MissingExtra",),
    "multi_agent": ("MultiAgentEnv",),
    "names": ("UnknownName",),
    "sandbox_env": ("SandboxEnv",),
    "schema": ("BadArgs",),
    "seat": ("as_single_agent",),
    "seeds": ("derive",),
    "signatures": ("ToolSchemaError",),
    "snapshot": ("RestoreDiverged", "Unsavable", "WrongSnapshot"),
    "spaces": ("Unicode",),
    "tool_env": ("EpisodeView", "ToolEnv"),
    "tools": ("ToolFailed", "metric", "reward", "tool"),
    "types": ("Episode", "Group", "Message", "Outcome", "Segment", "Stop", "Task", "Turn"),
    "vector": ("VecEnv", "make_vec"),
    "web.env": ("WebEnv",),
    "wrapper": ("Wrapper",),
    "wrappers": ("ActionSlips", "ObservationBudget", "TimeLimit", "ToolFailures"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "COMMAND",
    "FORMATS",
    "HERMES",
    "Action",
    "ActionFormat",
    "ActionSlips",
    "BadArgs",
    "CodeEnv",
    "DuplicateEnv",
    "EndedEarly",
    "Env",
    "EnvSpec",
    "Episode",
    "EpisodeView",
    "FormatMisfit",
    "Group",
    "Message",
    "MissingExtra",
    "MultiAgentEnv",
    "ObservationBudget",
    "Outcome",
    "Report",
    "Response",
    "RestoreDiverged",
    "SandboxEnv",
    "Segment",
    "Stop",
    "TapeError",
    "Task",
    "TextEnv",
    "TimeLimit",
    "ToolCall",
    "ToolEnv",
    "ToolFailed",
    "ToolFailures",
    "ToolSchemaError",
    "Turn",
    "Unicode",
    "UnknownEnv",
    "UnknownName",
    "Unsavable",
    "VecEnv",
    "WebEnv",
    "Wrapper",
    "WrongSnapshot",
    "as_single_agent",
    "check_env",
    "derive",
    "from_gymnasium",
    "list_envs",
    "make",
    "make_vec",
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
