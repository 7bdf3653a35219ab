"""`turnwise info`: one environment at a glance."""

from __future__ import annotations

import inspect
import json
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Any

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional, arg

from turnwise.cli.display import console, print_json, say, table, title
from turnwise.cli.options import json_object
from turnwise.envs.actions import fitting
from turnwise.envs.base import Env
from turnwise.envs.registry import make, spec
from turnwise.envs.tool_env import ToolEnv
from turnwise.sandboxes.base import SandboxError

KINDS = {
    **{"string": "str", "integer": "int", "number": "float", "boolean": "bool"},
    **{"array": "list", "object": "dict"},
}


@dataclass(frozen=True)
class Options:
    """One environment: what it is, its arguments, tools and splits, and an expert's first turns.

    example:
      turnwise info turnwise/FileHunt-v1 --env-kwargs '{"depth": 3}'
    """

    env: Annotated[Positional[str], arg(metavar="ENV")]
    """An id that `turnwise list` shows, or `module:Class`."""
    env_kwargs: str = "{}"
    """JSON object of the environment's arguments, as '{"depth": 3}'."""
    turns: int = 3
    """Turns of the expert to show."""
    seed: int = 0
    """Of the example shown."""
    json: bool = False
    """Print a JSON object."""


def run(options: Options) -> int:
    """Print what is known and return the exit code."""
    found = spec(options.env)
    with closing(make(options.env, **json_object(options.env_kwargs, "--env-kwargs"))) as env:
        facts = {
            "id": options.env,
            "where": found.where,
            "tags": list(found.tags),
            "summary": _summary(type(env.unwrapped)),
            "arguments": _arguments(env, {**found.kwargs, **env.env_kwargs}),
            "formats": _formats(env),
            "splits": {split: len(env.tasks(split)) for split in env.splits},
            "reward_range": list(env.reward_range),
            "chance_reward": env.chance_reward,
            "example": _example(env, options),
            "max_turns": env.max_turns,  # of the example: it may depend on the task
        }
    if options.json:
        print_json(facts)
    else:
        _show(console(), facts)
    return 0


def _summary(cls: type[object]) -> str:
    return (inspect.getdoc(cls) or "").partition("\n\n")[0]


def _formats(env: Env) -> list[str]:
    """Return the values that `actions` may have: the formats that can call the tools."""
    inner = env.unwrapped
    return fitting(tuple(inner.parts.tools.values())) if isinstance(inner, ToolEnv) else []


def _arguments(env: Env, given: dict[str, Any]) -> dict[str, str]:
    """Return the constructor's arguments, each with the value it has here; then the wrappers."""
    arguments = {}
    for name, parameter in inspect.signature(type(env.unwrapped)).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        required = parameter.default is parameter.empty
        arguments[name] = repr(given.get(name, "required" if required else parameter.default))
    if wrappers := given.get("wrappers"):
        arguments["wrappers"] = json.dumps(wrappers)
    return arguments


def _example(env: Env, options: Options) -> dict[str, Any]:
    """Return tools, opening and the expert's turns; only `missing` if nothing safe can run it."""
    try:
        observation, info = env.reset(seed=options.seed)
        turns = list(_expert_turns(env, options.turns))
    except SandboxError as error:
        return {"missing": str(error)}
    opening = info.get("messages") or [{"role": "user", "content": observation}]
    tools = [_tool(schema) for schema in info.get("tools") or ()]
    return {"task": info["task"].to_json(), "tools": tools, "opening": opening, "turns": turns}


def _expert_turns(env: Env, count: int) -> Any:
    for _ in range(count if hasattr(env, "expert") else 0):
        action = env.expert()  # type: ignore[attr-defined]
        observation, reward, terminated, truncated, _ = env.step(action)
        yield {"action": action, "reward": reward, "observation": observation}
        if terminated or truncated:
            return


def _tool(schema: dict[str, Any]) -> dict[str, str]:
    function = schema["function"]
    properties = function["parameters"]["properties"]
    given = ", ".join(f"{name}: {_kind(entry)}" for name, entry in properties.items())
    return {
        "signature": f"{function['name']}({given})",
        "does": function["description"].partition("\n")[0],
    }


def _kind(entry: dict[str, Any]) -> str:
    if "enum" in entry:
        return " | ".join(map(repr, entry["enum"]))
    if "anyOf" in entry:
        return " | ".join(map(_kind, entry["anyOf"]))
    return KINDS.get(entry.get("type", ""), entry.get("type", "any"))


def _show(out: Console, facts: dict[str, Any]) -> None:
    out.print(title(facts["id"], facts["where"]))
    out.print(Text(facts["summary"]))
    low, high = facts["reward_range"]
    sizes = ", ".join(f"{split} {size:,}" for split, size in facts["splits"].items())
    rows = [
        ("splits", sizes),
        ("turns", f"at most {facts['max_turns']} in the example"),
        ("reward", f"{low:g} to {high:g} per episode; by chance {facts['chance_reward']:g}"),
        ("tags", " ".join(facts["tags"]) or "none"),
        *((name, value) for name, value in facts["arguments"].items()),
    ]
    if facts["formats"]:
        rows.append(("calls as", " ".join(facts["formats"])))
    out.print()
    out.print(table("", "", rows=rows))
    _show_example(out, facts["example"])


def _show_example(out: Console, example: dict[str, Any]) -> None:
    if "missing" in example:
        out.print(Text(f"\nno example: {example['missing']}"))
        return
    if example["tools"]:
        out.print()
        rows = [(tool["signature"], tool["does"]) for tool in example["tools"]]
        out.print(table("tools", "", rows=rows))
    out.print()
    for message in example["opening"]:
        say(out, message["role"], message["content"])
    for turn in example["turns"]:
        say(out, "expert", turn["action"], "cyan")
        say(out, f"{turn['reward']:+.3g}", turn["observation"])
