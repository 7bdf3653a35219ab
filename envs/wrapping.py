"""Wrappers by name: what `make(id, wrappers=[[name, arguments]])` means, and a record keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from turnwise.envs.base import Env
from turnwise.envs.names import UnknownName, hint
from turnwise.envs.registry import EnvSpec, refuse_unknown_arguments
from turnwise.envs.wrapper import Wrapper


def wrap(env: Env, wrappers: Sequence[Any]) -> Env:
    """Return `env` within `wrappers`, the first one innermost.

    Args:
        env: What is wrapped.
        wrappers: `[name, arguments]` each; a name of `turnwise.envs.wrappers`, or `module:Class`.

    Raises:
        TypeError: they are not of that form, or a class takes no such argument.
        UnknownName: there is no such wrapper.
    """
    for entry in wrappers:
        name, arguments = _entry(entry)
        env = _class(name, arguments)(env, **arguments)
    return env


def _entry(entry: Any) -> tuple[str, dict[str, Any]]:
    """Return (name, arguments) of one entry of `wrappers`."""
    match entry:
        case [str(name), dict(arguments)]:
            return name, arguments
    raise TypeError(
        f"a wrapper is [name, arguments], got {entry!r:.80}; "
        'write wrappers=[["TimeLimit", {"turns": 5}]]'
    )


def _class(name: str, arguments: Mapping[str, Any]) -> type[Wrapper]:
    """Return the class of wrapper that `name` means, which takes `arguments`."""
    if ":" in name:
        cls: Any = EnvSpec(name, name).load()
    else:
        known = import_module("turnwise.envs.wrappers").__all__
        if name not in known:
            raise UnknownName(f"no wrapper {name!r}; {hint(name, known)}, or write module:Class")
        cls = getattr(import_module("turnwise.envs.wrappers"), name)
    if not issubclass(cls, Wrapper):
        raise TypeError(f"{name} is no wrapper; derive it from turnwise.envs.Wrapper")
    refuse_unknown_arguments(name, cls, arguments)
    return cls
