"""Agents that do not try, and actions that nobody should write: what `check_env` plays with."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from turnwise.envs.base import Env
from turnwise.envs.calls import ActionFormat
from turnwise.envs.formats.hermes import HERMES

Agent = Callable[[Env, str, random.Random], str]
"""(environment, what it last said, randomness) to an action."""

SPECIAL: tuple[str, ...] = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"),
    *("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "<pad>", "<unk>"),
    *("<think>", "</think>", "<tool_response>", "</tool_response>", "<tool_call>", "</tool_call>"),
    *("<function=x>", "</function>", "<parameter=x>", "</parameter>", "```python", "```"),
    *("\\boxed{", "\\boxed{}", "}", "<|start_header_id|>ipython<|end_header_id|>"),
)
"""Special tokens and tags of chat templates, written out as text."""

MALFORMED: tuple[str, ...] = (
    *("", " ", "\n\n", "\x00", "\ufeff", "é", "👋" * 50, "a" * 20_000, "'", '"', "\\", "a 'b"),
    *("<tool_call>", "</tool_call>", "<tool_call></tool_call>", "<tool_call>{}</tool_call>"),
    *("<tool_call>null</tool_call>", "<tool_call>[1]</tool_call>", '<tool_call>{"name":'),
    '<tool_call>{"name": "", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "x", "arguments": "{}"}</tool_call>',
    '<tool_call>{"name": "x", "arguments": {"a": NaN}}</tool_call>',
    '<tool_call>{"name": "x", "arguments": {"a": 1e999}}</tool_call>',
    '<tool_call>{"name": "x", "arguments": {"a": "\\ud800"}}</tool_call>',
    '<tool_call>{"name": "x", "arguments": {}}</tool_call>' * 100,
    '<tool_call>{"name": "x", "arguments": {"a": ' + "[" * 5000 + "]" * 5000 + "}}</tool_call>",
    '<tool_call>{"name": "x", "arguments": {"a": ' + "9" * 5000 + "}}</tool_call>",
    *("ls\nls", "no_such_tool", "cat " + "x " * 500, "$(reboot)", "| & ; > <", "../../etc/passwd"),
    *("<|im_end|>", "<think>", "</think>", "<tool_response>ok</tool_response>", "ToolError[none]"),
)
"""Text that a sampler may well produce. Each must be answered, and none may raise."""


def format_of(env: Env) -> ActionFormat:
    """Return how `env` wants calls to be written."""
    found = getattr(env, "format", HERMES)
    return found if isinstance(found, ActionFormat) else HERMES


def junk(schema: Mapping[str, Any]) -> Any:
    """Return the emptiest value that a parameter of `schema` accepts."""
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return junk(schema["anyOf"][0])
    values = {"integer": 0, "number": 0.0, "boolean": False, "array": [], "object": {}}
    return values.get(schema.get("type", "string"), "x")


def parameters_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schemas of a tool's parameters, by name."""
    return dict(schema["function"]["parameters"]["properties"])


def call_of(env: Env, schema: Mapping[str, Any], value: Callable[[Mapping[str, Any]], Any]) -> str:
    """Return a well-formed call of a tool whose arguments are made by `value`.

    Where the format cannot write these arguments, they are said in plain text.
    """
    args = {name: value(parameter) for name, parameter in parameters_of(schema).items()}
    try:
        return format_of(env).render(schema["function"]["name"], args)
    except ValueError:
        return " ".join(map(str, args.values()))


def mutations(call: str, rng: random.Random) -> Iterator[str]:
    """Yield what a sampler makes of a well-formed call: cut, doubled, garbled, wrapped, tagged."""
    for cut in sorted({1, len(call) // 2, len(call) - 1}):
        yield call[:cut]
        yield call[cut:]
    yield call + call
    yield f"{call}\n{call}\n" * 20
    yield f"I think that\n{call}\nis right."
    yield call.replace('"', "'")
    yield call.replace("{", "[").replace("(", "{").replace("=", ":")
    for tag in SPECIAL:
        at = rng.randrange(len(call) + 1)
        yield call[:at] + tag + call[at:]
    yield call[: len(call) // 2] + "\x00\u202eé日本👋\ud800" + call[len(call) // 2 :]
    yield call + "x" * 50_000


def wrong_values(env: Env, schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield calls of a tool with arguments of other types, too many, too few, and huge ones."""
    names, tool = list(parameters_of(schema)), schema["function"]["name"]
    every: list[dict[str, Any]] = [{}, {**dict.fromkeys(names, "x"), "no_such_parameter": 1}]
    every += [dict.fromkeys(names, value) for value in _VALUES]
    for written, args in (
        (tool + "x", dict.fromkeys(names, "x")),
        *((tool, args) for args in every),
    ):
        try:
            yield format_of(env).render(written, args)
        except (ValueError, TypeError):  # the format cannot write this call, so nobody can
            continue


_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 1.5, 10**400, "", "x" * 50_000, [], {}, [[[]]], {"a": {"b": []}}),
    *("\x00", "é日本👋", *SPECIAL[:3], "../../etc/passwd", "a\nb", '"\\'),
)


def always(action: str) -> Agent:
    """Return the agent that says one thing."""
    return lambda env, observation, rng: action


def empty_agent(env: Env, observation: str, rng: random.Random) -> str:
    """Say nothing."""
    return ""


def echo_agent(env: Env, observation: str, rng: random.Random) -> str:
    """Say what was read."""
    return observation


def format_agents(tools: Sequence[Mapping[str, Any]]) -> dict[str, Agent]:
    """Return, for each tool, the agent that calls it with junk for ever."""

    def one(schema: Mapping[str, Any]) -> Agent:
        return lambda env, observation, rng: call_of(env, schema, junk)

    return {f"format-only {tool['function']['name']}": one(tool) for tool in tools}


def random_agent(tools: Sequence[Mapping[str, Any]]) -> Agent:
    """Return the agent that calls random tools with random words of what it read."""

    def act(env: Env, observation: str, rng: random.Random) -> str:
        words = observation.split() or ["x"]

        def value(schema: Mapping[str, Any]) -> Any:
            if schema.get("type") == "integer":
                return rng.randrange(100)
            if schema.get("type") == "string" and "enum" not in schema:
                return rng.choice(words)
            return rng.choice(schema["enum"]) if "enum" in schema else junk(schema)

        return call_of(env, rng.choice(tools), value) if tools else rng.choice(words)

    return act


def expert_agent(env: Env, observation: str, rng: random.Random) -> str:
    """Ask the environment's own expert."""
    return str(env.expert())  # type: ignore[attr-defined]


def mixed_agent(tools: Sequence[Mapping[str, Any]], *, expert: bool) -> Agent:
    """Return the agent that walks on and off the path: expert, random and malformed actions."""
    wander = random_agent(tools)

    def act(env: Env, observation: str, rng: random.Random) -> str:
        draw = rng.random()
        if draw < 0.1:
            return rng.choice(MALFORMED)
        if draw < 0.6 and expert:
            return expert_agent(env, observation, rng)
        return wander(env, observation, rng)

    return act
