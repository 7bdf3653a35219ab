"""Ids to environments. An id is `namespace/Name-vN`; raise N when scores stop being comparable.

Three ways in: `@register("shop/Refund-v1")` on a class; `register("shop/Refund-v1",
"shop.envs:Refund")`, which imports nothing until it is made; and, for an installed package, an
entry point in the group `turnwise.envs` whose value is a module that registers on import or a
function that registers when called. `module:Class` stands for an id wherever one is taken, and
`gymnasium/CartPole-v1` for an environment of gymnasium that is read and answered as text.
"""

from __future__ import annotations

import importlib
import inspect
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from turnwise.envs.gymnasium_plugin import mirror
from turnwise.envs.names import UnknownName, hint

if TYPE_CHECKING:
    from turnwise.envs.base import Env

T = TypeVar("T", bound=type)
GROUP = "turnwise.envs"
_ID = re.compile(r"[\w.-]+/[\w.-]+-v\d+")
_FOREIGN = "gymnasium/"
_ADAPTER = "turnwise.envs.adapters.gymnasium:FromGymnasium"


class UnknownEnv(UnknownName):
    """No environment has this id; the message names the nearest."""


class DuplicateEnv(ValueError):
    """The id is taken; the message says by what."""


@dataclass(frozen=True, slots=True)
class EnvSpec:
    """How to make one environment."""

    id: str
    entry_point: str | type
    """`module:Class`, or the class."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the constructor; `make(id, **more)` overrides them."""
    tags: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """The entry point as `module:Class`."""
        if isinstance(self.entry_point, str):
            return self.entry_point
        return f"{self.entry_point.__module__}:{self.entry_point.__qualname__}"

    def load(self) -> type[Env]:
        """Import and return the class.

        Raises:
            UnknownEnv: the module has no such class.
            MissingExtra: it needs a package that is not installed.
        """
        if isinstance(self.entry_point, str):
            return _load(self.entry_point)
        return self.entry_point


_SPECS: dict[str, EnvSpec] = {}
_BROKEN: list[str] = []
_discovered = False
_discovering = threading.RLock()


def register(
    id: str,
    entry_point: str | type | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    tags: tuple[str, ...] = (),
) -> Callable[[T], T]:
    """Give an environment an id; without an entry point, a decorator of the class.

    The id is also known to `gymnasium.make`.

    Args:
        id: `namespace/Name-vN`.
        entry_point: A class, or `module:Class`, which is imported only when it is made.
        kwargs: Arguments of the constructor, and `wrappers`; see `make`.
        tags: For `list_envs(tag)`.

    Raises:
        ValueError: the id is not of that form.
        DuplicateEnv: the id is taken by something else.
    """
    if not _ID.fullmatch(id):
        raise ValueError(f"an environment id is namespace/Name-vN, got {id!r}")
    if isinstance(tags, str):
        raise TypeError(f"tags is a tuple of names, got {tags!r}; write ({tags!r},)")

    def add(cls: T) -> T:
        _add(EnvSpec(id, cls, dict(kwargs or {}), tuple(tags)))
        return cls

    if entry_point is not None:
        _add(EnvSpec(id, entry_point, dict(kwargs or {}), tuple(tags)))
    return add


def _add(spec: EnvSpec) -> None:
    taken = _SPECS.get(spec.id)
    if taken is not None and (taken.where, taken.kwargs) != (spec.where, spec.kwargs):
        raise DuplicateEnv(f"{spec.id!r} is already {taken.where}; raise the version or rename")
    _SPECS[spec.id] = spec
    if "wrappers" in spec.kwargs:  # which only `make` knows
        mirror(spec.id, partial(make, spec.id), {})
    else:
        mirror(spec.id, spec.entry_point, spec.kwargs)


def _discover() -> None:
    """Load the entry points of installed packages, once; a broken one only warns."""
    global _discovered
    with _discovering:  # another thread waits until all is found; what is loaded may ask, too
        points = () if _discovered else tuple(entry_points(group=GROUP))
        _discovered = True
        _load_points(points)


def _load_points(points: Iterable[EntryPoint]) -> None:
    for point in points:
        try:
            loaded = point.load()
            if callable(loaded) and not isinstance(loaded, type):
                loaded()
        except Exception as error:
            _BROKEN.append(f"{point.value}: {type(error).__name__}: {error}")
            warnings.warn(f"environments of {_BROKEN[-1]} were not loaded", stacklevel=4)


def spec(id: str) -> EnvSpec:
    """Return how to make the environment `id`; `module:Class` needs no registration.

    Raises:
        UnknownEnv: there is none; the message names the nearest.
    """
    if id.startswith(_FOREIGN) and id not in _SPECS:
        return EnvSpec(id, _ADAPTER, {"env": id.removeprefix(_FOREIGN)}, ("gymnasium",))
    if ":" in id:
        return EnvSpec(id, id)
    if id not in _SPECS:
        _discover()
    if id not in _SPECS:
        broken = f" (not loaded: {'; '.join(_BROKEN)})" if _BROKEN else ""
        raise UnknownEnv(f"no environment {id!r}; {_nearest(id)}{broken}")
    return _SPECS[id]


def _nearest(id: str) -> str:
    """Return a hint; a name without its namespace or version finds the whole id."""
    name = id.rpartition("/")[2].lower()
    for known in _SPECS:
        if name in (short := known.rpartition("/")[2].lower(), re.sub(r"-v\d+$", "", short)):
            return f"did you mean {known!r}?"
    return hint(id, _SPECS)


def list_envs(tag: str | None = None) -> list[EnvSpec]:
    """Return every registered environment, or those with `tag`, in the order of their ids."""
    _discover()
    specs = (_SPECS[id] for id in sorted(_SPECS))
    return [spec for spec in specs if tag is None or tag in spec.tags]


def make(id: str, /, **kwargs: Any) -> Env:
    """Make the environment `id`; `kwargs` go to its constructor, over the registered ones.

    `make(env.env_id, **env.env_kwargs)` makes an equal one.

    Args:
        id: As `list_envs` shows it, or `module:Class`.
        kwargs: `wrappers` is a list of `[name, arguments]`, the innermost first: names of
            `turnwise.envs.wrappers`, or `module:Class`. All others are the constructor's.

    Raises:
        UnknownEnv: there is no such environment.
        UnknownName: there is no such wrapper.
        TypeError: a constructor takes no such argument.
        MissingExtra: it needs a package that is not installed.

    Example:
        `make("turnwise/FileHunt-v1", depth=3, wrappers=[["ToolFailures", {"p": 0.1}]])`
    """
    found = spec(id)
    cls = found.load()
    refuse_unknown_arguments(id, cls, kwargs, "wrappers")
    given = {**found.kwargs, **kwargs}
    if "wrappers" not in given:
        env = built(id, cls, given)
        env.env_id, env.env_kwargs = id, kwargs
        return env
    from turnwise.envs.wrapping import wrap

    wrappers = given.pop("wrappers")
    env = built(id, cls, given)
    env.env_id, env.env_kwargs = id, {**kwargs, "wrappers": []}  # each wrapper adds itself
    return wrap(env, wrappers)


def refuse_unknown_arguments(
    id: str, cls: type, kwargs: Mapping[str, Any], *also_taken: str
) -> None:
    """Refuse an argument that the constructor of `cls` does not take.

    Raises:
        TypeError: there is one; the message names the nearest.
    """
    taken = (*inspect.signature(cls).parameters.values(),)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
        return
    names = [*(p.name for p in taken if p.kind is not p.POSITIONAL_ONLY), *also_taken]
    for name in kwargs:
        if name not in names:
            raise TypeError(f"{id} takes no argument {name!r}; {hint(name, names)}")


def built(id: str, cls: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """Return `cls(**given)`; what none of the constructors that `**options` lead to takes is named.

    Raises:
        TypeError: an argument is taken by none of them; the message names the nearest.
    """
    try:
        return cls(**given)
    except TypeError as error:
        unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        names = {"wrappers"}.union(*map(_keywords, getattr(cls, "__mro__", ())))
        if unexpected is None or unexpected[1] not in given.keys() - names:
            raise
        name = unexpected[1]
        raise TypeError(f"{id} takes no argument {name!r}; {hint(name, names)}") from error


def _keywords(cls: type) -> set[str]:
    """Return the arguments that a class's own constructor takes by name."""
    if "__init__" not in vars(cls) or cls is object:
        return set()
    taken = inspect.signature(vars(cls)["__init__"]).parameters.values()
    return {p.name for p in taken if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)} - {"self"}


def _load(where: str) -> type[Env]:
    """Import `module:Class`."""
    from turnwise.envs.base import Env

    module_name, _, name = where.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UnknownEnv(f"no environment {where!r}: there is no module {error.name!r}") from error
    found = getattr(module, name, None)
    if not isinstance(found, type) or not issubclass(found, Env):
        classes = [n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, Env)]
        raise UnknownEnv(f"no environment {name!r} in {module_name}; {hint(name, classes)}")
    return found


def _builtin(name: str, entry_point: str, *tags: str, **kwargs: Any) -> None:
    register(f"turnwise/{name}", f"turnwise.envs.{entry_point}", kwargs=kwargs, tags=tags)


_builtin("FileHunt-v1", "builtin.filehunt:FileHunt", "tools", "sandbox")
_builtin("Repair-v1", "builtin.repair:Repair", "code", "sandbox")
_builtin("RepairShell-v1", "builtin.repair_shell:RepairShell", "code", "sandbox")
_builtin("RepoRepair-v1", "builtin.repo_repair:RepoRepair", "code", "sandbox")
_builtin("Sql-v1", "builtin.sql:Sql", "code", "sandbox")
_builtin("Craft-v1", "builtin.craft:Craft", "text")
_builtin("Corridor-v1", "builtin.corridor:Corridor", "text")
_builtin("Sokoban-v1", "builtin.sokoban:Sokoban", "text", "grid")
_builtin("Nim-v1", "builtin.nim:NimSeat", "text", "game")
_builtin("Calculator-v1", "builtin.calculator:Calculator", "tools")
_builtin("RefundDesk-v1", "builtin.refund_desk:RefundDesk", "tools")
_builtin("Workbench-v1", "builtin.workbench:Workbench", "tools")
_builtin("PythonTool-v1", "builtin.python_tool:PythonTool", "tools", "code", "sandbox")
for _level in (
    *("GoToRedBallGrey", "GoToRedBall", "GoToObj", "GoToLocal", "GoToDoor", "GoTo"),
    *("OpenDoor", "PickupLoc", "UnlockLocal", "PutNextLocal", "Pickup", "Synth"),
):
    _builtin(f"BabyAI-{_level}-v1", "builtin.babyai:BabyAI", "babyai", "grid", level=_level)
_builtin("Shop-v1", "builtin.shop:Shop", "web", "sandbox")
_builtin("Forms-v1", "builtin.forms:Forms", "web", "sandbox")
