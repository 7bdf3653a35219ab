"""`Env`: the contract that every environment keeps. See base.py for the easy ways to write one."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import gymnasium
import numpy as np

from turnwise.envs import types
from turnwise.envs.clock import Taped
from turnwise.envs.names import UnknownName, hint
from turnwise.envs.seeds import derive
from turnwise.envs.spaces import Unicode


class EndedEarly(RuntimeError):
    """The episode ended before all actions were played; `turn` counts those that were."""

    def __init__(self, turn: int, actions: int) -> None:
        super().__init__(f"the episode ended after {turn} of {actions} actions")
        self.turn = turn


class Env(Taped, gymnasium.Env[str, str]):
    """A world that one agent acts in by text. Subclass it for full control; else see `TextEnv`.

    `reset` gives `info` with `task`, `messages` (the opening), `tools` (JSON schemas) and `state`.
    `step` gives `info` with `messages` (only the new ones), `state`, `rewards` by name, `calls`,
    `error` when the agent made a mistake, `nondet` when time or a network was read, and on the last
    step `success`, `metrics` and, unless the episode ended well, `outcome`. Both may give `kind`, a
    word for the situation that the agent acts in next, to split metrics by.

    Optional capabilities, discovered and never required: `expert() -> str` (a right action now),
    `snapshot() -> bytes` and `restore(bytes)`, `state_hash`.
    """

    Task: ClassVar[type[types.Task]] = types.Task
    fast: ClassVar[bool] = False
    """A step takes less than about 1 ms and never blocks: the scheduler runs it inline."""
    max_turns: int = 32
    step_timeout_s: float = 30.0
    reward_range: tuple[float, float] = (0.0, 1.0)
    """Of the sum of an episode's rewards."""
    chance_reward: float = 0.0
    """The most that an agent may earn which does not try: empty, echoing or format-only."""
    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "test")

    env_id: str = ""
    """Set by `turnwise.envs.make`; with `env_kwargs` it makes this environment again."""
    env_kwargs: Mapping[str, Any] = {}

    sandbox: str = ""
    """The backend of the box that this episode's commands run in; goes into its record."""

    task: types.Task
    rng: random.Random
    """This episode's own randomness; seeded by `reset`. Never use the global generators."""
    _made_with: tuple[tuple[Any, ...], dict[str, Any]] = (), {}
    _seeds: np.random.Generator | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the arguments, so that `fork` can make an equal environment."""
        self = super().__new__(cls)
        self._made_with = args, kwargs
        return self

    @cached_property
    def observation_space(self) -> Unicode:  # type: ignore[override]
        """Any text."""
        return Unicode()

    @cached_property
    def action_space(self) -> Unicode:  # type: ignore[override]
        """Any text; what cannot be understood is answered, not refused."""
        return Unicode()

    def tasks(self, split: str) -> Sequence[types.Task]:
        """Return the tasks of `split` in a fixed order; splits share none. May be lazy."""
        raise NotImplementedError(f"{type(self).__name__} must define tasks(split)")

    def state_hash(self) -> str:
        """Return the canonical hash of the present state; empty where none is offered."""
        return ""

    def begin(self, seed: int | None, options: Mapping[str, Any] | None) -> types.Task:
        """Seed this episode and choose its task; call it first in `reset`.

        The task is `options["task"]`, else it is drawn by seed from `options["split"]` ("train").
        `rng` and `np_random` depend on the episode's seed alone, so that a task that was drawn and
        the same task given by hand start alike.

        Raises:
            TypeError: the task is not of this environment's `Task` class.
            UnknownName: an option or split has an unknown name.
        """
        if seed is None:
            self._seeds = self._seeds or self.np_random
            episode_seed = int(self._seeds.integers(2**31))
        else:
            self._seeds, episode_seed = None, seed
        super().reset(seed=episode_seed, options=dict(options or {}))
        if self._tape is not None:
            self._tape.begin()
        self.rng = random.Random(episode_seed)
        self.task = self._choose(episode_seed, options or {})
        return self.task

    def fast_forward(self, actions: Sequence[str]) -> None:
        """Play actions that were recorded, after `reset`; the last one may end the episode.

        Raises:
            EndedEarly: it ended before the last one.
        """
        for turn, action in enumerate(actions, 1):
            _, _, terminated, truncated, _ = self.step(action)
            if (terminated or truncated) and turn < len(actions):
                raise EndedEarly(turn, len(actions))

    def _choose(self, seed: int, options: Mapping[str, Any]) -> types.Task:
        for name in options.keys() - {"task", "split"}:
            raise UnknownName(f"no reset option {name!r}; {hint(name, ('task', 'split'))}")
        if (task := options.get("task")) is not None:
            if not isinstance(task, self.Task):
                raise TypeError(
                    f"{type(self).__name__} takes tasks of class {self.Task.__name__}, "
                    f"got {type(task).__name__}; take one from tasks(split)"
                )
            return task
        split = self.known_split(options.get("split", "train"))
        tasks = self.tasks(split)
        if not len(tasks):
            raise ValueError(
                f"{type(self).__name__} has no tasks in its split {split!r}; "
                "tasks(split) must return some"
            )
        return tasks[derive(seed, "task") % len(tasks)]

    def known_split(self, split: str) -> str:
        """Return `split`.

        Raises:
            UnknownName: there is no such split; the message names the nearest.
        """
        if split not in self.splits:
            raise UnknownName(f"no split {split!r}; {hint(str(split), self.splits)}")
        return split
