"""`Wrapper`: an environment around another one, which changes what passes between agent and world.

A wrapper is an `Env` itself, so everything works on it: `check_env`, rollouts, records, replay. It
copies nothing from the environment within: whatever is asked of it and is not its own is looked up
there at that moment. Four wrappers are in `turnwise.envs.wrappers`.

Example:
    class Shouting(Wrapper):
        def step(self, action):
            observation, *rest, info = super().step(action)
            info["messages"] = [{**m, "content": m["content"].upper()} for m in info["messages"]]
            return observation.upper(), *rest, info

    make("turnwise/FileHunt-v1", wrappers=[["my_module:Shouting", {}]])
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any, Self

from turnwise.envs.base import Env
from turnwise.envs.seeds import derive
from turnwise.envs.types import canonical_json

Step = tuple[str, float, bool, bool, dict[str, Any]]
"""(observation, reward, terminated, truncated, info)."""


def _inner(name: str) -> Any:
    """Return a property that reads and writes attribute `name` of the environment within."""

    def write(self: Wrapper, value: Any) -> None:
        setattr(self.env, name, value)

    return property(lambda self: getattr(self.env, name), write)


class Wrapper(Env):
    """An environment around `env`. Override `reset` and `step`, and call `super()` in them.

    What the wrapper itself must remember of an episode goes into `memory`, which `reset` empties
    and which snapshots save.

    Args:
        env: What is wrapped.
        arguments: All other arguments of the constructor, as JSON values: a record keeps them, so
            that a replay can wrap alike.

    Raises:
        TypeError: `env` is no environment of turnwise.
    """

    env: Env
    memory: dict[str, Any]
    """JSON values."""
    _turn: int = 0
    """How many actions this episode has had."""
    _seed: int = 0
    """The episode's."""

    Task = _inner("Task")
    fast = _inner("fast")
    max_turns = _inner("max_turns")
    step_timeout_s = _inner("step_timeout_s")
    reward_range = _inner("reward_range")
    chance_reward = _inner("chance_reward")
    splits = _inner("splits")
    env_id = _inner("env_id")
    sandbox = _inner("sandbox")
    task = _inner("task")
    rng = _inner("rng")
    np_random = _inner("np_random")
    np_random_seed = _inner("np_random_seed")
    observation_space = _inner("observation_space")
    action_space = _inner("action_space")
    metadata = _inner("metadata")
    spec = _inner("spec")
    render_mode = _inner("render_mode")
    begin = _inner("begin")
    clock = _inner("clock")
    taped = _inner("taped")
    feed = _inner("feed")
    reads = _inner("reads")
    tape = _inner("tape")
    take_reads = _inner("take_reads")
    tasks = _inner("tasks")
    known_split = _inner("known_split")
    state_hash = _inner("state_hash")
    render = _inner("render")

    def __init__(self, env: Env, /, **arguments: Any) -> None:
        if not isinstance(env, Env):
            raise TypeError(
                f"{type(self).__name__} wraps an environment of turnwise, got "
                f"{type(env).__name__}; from_gymnasium makes one of a gymnasium environment"
            )
        self.env, self.arguments, self.memory = env, arguments, {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "env":  # `env` itself is not there while unpickling
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.env, name)

    @property
    def unwrapped(self) -> Env:
        """The environment within all wrappers."""
        return self.env.unwrapped  # type: ignore[return-value]

    @property
    def env_kwargs(self) -> dict[str, Any]:  # type: ignore[override]
        """What, with `env_id`, makes this environment again, wrappers included."""
        kwargs = dict(self.env.env_kwargs)
        entry = [named(type(self)), self.arguments]
        return {**kwargs, "wrappers": [*kwargs.get("wrappers", ()), entry]}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._seed = self.unwrapped.np_random_seed if seed is None else seed
        self._turn, self.memory = 0, {}
        return observation, info

    def step(self, action: str) -> Step:
        """Play one turn."""
        answer: Any = self.env.step(action)
        self._turn += 1
        return answer

    def close(self) -> None:
        """Close the environment within."""
        self.env.close()

    def draw(self, *place: Any) -> int:
        """Return a 31-bit number named by the episode's seed, this turn and `place` alone.

        What was drawn before does not enter, so that all attempts of a group meet the same luck in
        the same turn. Two wrappers of one class draw apart.
        """
        names = [named(type(layer)) for layer in layers(self)]
        return derive(names[0], names.count(names[0]), self._seed, self._turn, *place)

    @property
    def snapshot(self) -> Callable[[], bytes] | None:
        """Return the state of all layers; absent where the environment within offers none."""
        inner = self.env.snapshot  # type: ignore[attr-defined]
        return self._saved if callable(inner) else None

    @property
    def restore(self) -> Callable[[bytes], None] | None:
        """Go back to what `snapshot` saved; absent where the environment within cannot."""
        inner = self.env.restore  # type: ignore[attr-defined]
        return self._restored if callable(inner) else None

    def _saved(self) -> bytes:
        inner = base64.b64encode(self.env.snapshot()).decode()  # type: ignore[attr-defined]
        return canonical_json({"wrapper": self._own(), "within": inner}).encode()

    def _restored(self, saved: bytes) -> None:
        value = json.loads(saved)
        self.env.restore(base64.b64decode(value["within"]))  # type: ignore[attr-defined]
        self._take(value["wrapper"])

    def _own(self) -> dict[str, Any]:
        return {"seed": self._seed, "turn": self._turn, "memory": self.memory}

    def _take(self, own: dict[str, Any]) -> None:
        self._seed, self._turn, self.memory = own["seed"], own["turn"], own["memory"]

    @property
    def fork(self) -> Callable[[], Self] | None:
        """Return an environment of its own in the same state; absent where `snapshot` is."""
        inner = self.env.fork  # type: ignore[attr-defined]
        return self._forked if callable(inner) else None

    def _forked(self) -> Self:
        twin = type(self)(self.env.fork(), **self.arguments)  # type: ignore[attr-defined]
        twin._take(json.loads(canonical_json(self._own())))
        return twin


def layers(env: Env) -> list[Env]:
    """Return the wrappers of `env`, the outermost first, and what they wrap at the end."""
    found = [env]
    while isinstance(env := found[-1], Wrapper):
        found.append(env.env)
    return found


def named(cls: type) -> str:
    """Return the name under which `make(..., wrappers=...)` finds a class of wrapper."""
    short = cls.__module__.startswith("turnwise.envs.wrappers")
    return cls.__qualname__ if short else f"{cls.__module__}:{cls.__qualname__}"


@contextlib.contextmanager
def lent(owner: Any, name: str, value: Any) -> Iterator[None]:
    """While it lasts, attribute `name` of the object `owner` is `value`; nothing is left behind."""
    absent = object()
    before = vars(owner).get(name, absent)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is absent:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
