"""One method's signature and docstring, as the tool that an agent is offered."""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from turnwise.envs.calls import ToolCall
from turnwise.envs.names import hint
from turnwise.envs.schema import BadArgs, Kind, kind_of


class ToolSchemaError(TypeError):
    """A tool cannot be offered as it is written; the message names it and the parameter."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a tool."""

    name: str
    kind: Kind
    required: bool
    doc: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool of an environment class, made once per class."""

    name: str
    function: Callable[..., Any]
    description: str
    parameters: tuple[Parameter, ...]
    final: bool = False
    """The episode ends once it has run without a failure."""
    timeout_s: float | None = None
    """A call that takes longer is answered with `timeout`."""
    is_async: bool = False
    """Whether `function` is a coroutine function."""
    _by_name: dict[str, Parameter] = field(default_factory=dict)
    _required: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._by_name.update({parameter.name: parameter for parameter in self.parameters})
        required = tuple(p.name for p in self.parameters if p.required)
        object.__setattr__(self, "_required", required)

    @property
    def signature(self) -> str:
        """As the agent reads it: `cat(path: str)`."""
        given = ", ".join(f"{p.name}: {p.kind.text}" for p in self.parameters)
        return f"{self.name}({given})"

    def schema(self) -> dict[str, Any]:
        """Return the tool as OpenAI and Hugging Face chat templates take it, a new object."""
        properties = {
            p.name: {**p.kind.schema, **({"description": p.doc} if p.doc else {})}
            for p in self.parameters
        }
        parameters = {"type": "object", "properties": properties, "required": list(self._required)}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": json.loads(json.dumps(function))}

    def bind(self, call: ToolCall) -> dict[str, Any]:
        """Return the typed arguments of `call` by name.

        Raises:
            BadArgs: one is missing, unknown, superfluous or of the wrong type.
        """
        if call.words is not None:
            return self._bind_words(call.words)
        given: Mapping[str, Any] = (call.args if call.texts is None else call.texts) or {}
        for name in given:
            if name not in self._by_name:
                raise BadArgs(f"{self.name} has no parameter {name[:40]!r}; {self._names(name)}")
        kinds = {name: self._by_name[name].kind for name in given}
        if call.texts is not None:
            args = {name: kinds[name].read(name, text) for name, text in given.items()}
        else:
            args = {name: kinds[name].check(name, value) for name, value in given.items()}
        self._refuse_missing(args)
        return args

    def _bind_words(self, words: tuple[str, ...]) -> dict[str, Any]:
        if len(words) > len(self.parameters):
            raise BadArgs(
                f"{self.signature} takes {len(self.parameters)} argument(s), got {len(words)}; "
                "quote a value that contains spaces"
            )
        pairs = zip(self.parameters, words, strict=False)
        args = {p.name: p.kind.read(p.name, word) for p, word in pairs}
        self._refuse_missing(args)
        return args

    def _refuse_missing(self, args: dict[str, Any]) -> None:
        for name in self._required:
            if name not in args:
                text = self._by_name[name].kind.text
                raise BadArgs(f"{self.name} needs {name} ({text})")

    def _names(self, name: str) -> str:
        return hint(name, self._by_name)


def refuse_signature(method: Callable[..., Any]) -> None:
    """Refuse what can be seen without resolving the annotations."""
    where = method.__qualname__
    if inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method):
        raise ToolSchemaError(f"{where}: a tool returns one answer; write return, not yield")
    if not (method.__doc__ or "").strip():
        raise ToolSchemaError(f"{where} needs a docstring: the agent reads it")
    for parameter in _own_parameters(method):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ToolSchemaError(f"{where}: {parameter} has no schema; name each parameter")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ToolSchemaError(f"{where}: {parameter.name!r} must not be positional-only")
        if parameter.annotation is parameter.empty:
            raise ToolSchemaError(
                f"{where}: parameter {parameter.name!r} has no type; "
                f"write for example `{parameter.name}: str`"
            )


def _own_parameters(method: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(method).parameters.values())[1:]


_ARGUMENT = re.compile(r"^(\w+)(?: \([^)]*\))?:\s*(.*)$")


def _documented(doc: str) -> tuple[str, dict[str, str]]:
    """Return (description, text by parameter) of a Google-style docstring."""
    body, _, section = inspect.cleandoc(doc).partition("\nArgs:\n")
    description = re.split(r"\n(?:Returns|Raises|Yields|Example|Note)s?:\n", body)[0].strip()
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if line.strip() and not line.startswith(" "):
            break
        if match := _ARGUMENT.match(line[4:]):
            name = match[1]
            found[name] = match[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return description, found


def make_tool(
    method: Callable[..., Any], *, final: bool = False, timeout_s: float | None = None
) -> Tool:
    """Return the `Tool` of a method that `@tool` has accepted.

    Raises:
        ToolSchemaError: a type cannot be resolved or JSON cannot hold it, or `Args:` documents
            something that is no parameter.
    """
    where = method.__qualname__
    try:
        hints = typing.get_type_hints(method)
    except NameError as error:
        raise ToolSchemaError(f"{where}: a type cannot be resolved: {error}") from error
    description, docs = _documented(method.__doc__ or "")
    parameters = [_parameter(where, own, hints, docs) for own in _own_parameters(method)]
    for name in docs.keys() - {parameter.name for parameter in parameters}:
        raise ToolSchemaError(f"{where}: Args documents {name!r}, which is no parameter")
    is_async = inspect.iscoroutinefunction(method)
    return Tool(method.__name__, method, description, tuple(parameters), final, timeout_s, is_async)


def _parameter(
    where: str, own: inspect.Parameter, hints: dict[str, Any], docs: dict[str, str]
) -> Parameter:
    try:
        kind = kind_of(hints[own.name])
    except TypeError as error:
        raise ToolSchemaError(f"{where}: parameter {own.name!r}: {error}") from error
    return Parameter(own.name, kind, own.default is own.empty, docs.get(own.name, ""))
