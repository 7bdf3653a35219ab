"""`make_vec`: many environments behind gymnasium's vector interface, or without a barrier.

    vec = make_vec("turnwise/FileHunt-v1", 16)
    observations, infos = vec.reset(seed=0)
    observations, rewards, terminations, truncations, infos = vec.step(actions)     # all together

    for index in range(16):
        vec.send(index, first_action)                                               # or each alone
    while ...:
        for arrival in vec.recv(timeout_s=1.0):
            vec.send(arrival.index, act(arrival.observation))

An episode that ends is followed by the next one at once. What it ended with is in
`infos["final_obs"]` and `infos["final_info"]`.

An environment that raises, or overruns its deadline, ends its own episode and nobody else's: as
truncated, with a reward of NaN, which no sum can mistake for a zero, `info["outcome"]` as in a
record, and `info["detail"]`. A fresh environment takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from turnwise.envs.base import Env
from turnwise.envs.lanes import Arrival, Lanes
from turnwise.envs.registry import make
from turnwise.envs.spaces import Unicode

__all__ = ["Arrival", "VecEnv", "make_vec"]

Batch = tuple[tuple[str, ...], Any, Any, Any, dict[str, Any]]
"""Observations; rewards, terminations and truncations as arrays of shape (n,); infos."""


class VecEnv(VectorEnv[tuple[str, ...], Sequence[str], Any]):
    """`n` environments over `Lanes`; see `make_vec` and the head of this file.

    Fast environments step inside `send`; the others on threads, each call with a deadline.
    """

    def __init__(
        self,
        make_env: Callable[[], Env],
        n: int,
        *,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
        step_timeout_s: float | None = None,
    ) -> None:
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if autoreset_mode is AutoresetMode.DISABLED:
            raise ValueError("autoreset_mode must be SAME_STEP or NEXT_STEP")
        self.num_envs = n
        self.metadata = {"autoreset_mode": autoreset_mode}
        self.single_observation_space = self.single_action_space = Unicode()
        self.observation_space = batch_space(Unicode(), n)
        self.action_space = batch_space(Unicode(), n)
        same_step = autoreset_mode is AutoresetMode.SAME_STEP
        self.lanes = Lanes(make_env, n, same_step=same_step, step_timeout_s=step_timeout_s)
        self.env(0)  # what cannot even be made is an error here

    def env(self, index: int) -> Env:
        """Return environment `index` itself; another one may take its place."""
        return self.lanes.pool.env(index)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Start an episode in each environment.

        The seed of an environment's later episodes follows from that of its first. They are of the
        same split; a task in `options` is that of the first one only.

        Args:
            seed: Environment i gets `seed + i`, or `seed[i]`.
            options: See `Env.begin`; the same for all.

        Raises:
            Exception: what an environment raised, after all have been asked.
        """
        self.lanes.pool.recv()  # nobody waits for these any more
        for index, own in enumerate(self._seeds(seed)):
            self.lanes.reset(index, own, options or {})
        arrivals = self._all()
        for error in map(self.lanes.error, range(self.num_envs)):
            if error is not None:
                raise error
        observations, *_, infos = self._batch(arrivals)
        return observations, infos

    def step(self, actions: Sequence[str]) -> Batch:
        """Step all environments and wait for the last one.

        Raises:
            ValueError: there is not one action for each, or one has not been received.
            ResetNeeded: before `reset`.
        """
        if len(actions) != self.num_envs:
            raise ValueError(f"need {self.num_envs} actions, got {len(actions)}")
        if waiting := self.lanes.busy:
            raise ValueError(f"environments {waiting} were sent to and not received: call recv()")
        for index, action in enumerate(actions):
            self.send(index, action)
        return self._batch(self._all())

    def send(self, index: int, action: str) -> None:
        """Step one environment; its answer comes from a later `recv`.

        Raises:
            ValueError: its last answer has not been received.
            ResetNeeded: before `reset`.
        """
        self.lanes.send(index, action)

    def recv(self, timeout_s: float = 0.0) -> list[Arrival]:
        """Return every answer that is there; wait up to `timeout_s` for the first one."""
        return self.lanes.recv(timeout_s)

    def close_extras(self, **_: Any) -> None:
        """Close every environment."""
        self.lanes.pool.close()

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int]:
        if isinstance(seed, int):
            super().reset(seed=seed)  # seeds what a later reset without a seed draws from
            return [seed + index for index in range(self.num_envs)]
        given = [None] * self.num_envs if seed is None else list(seed)
        if len(given) != self.num_envs:
            raise ValueError(f"need {self.num_envs} seeds, got {len(given)}")
        return [int(self.np_random.integers(2**31)) if s is None else s for s in given]

    def _all(self) -> list[Arrival]:
        found: dict[int, Arrival] = {}
        while len(found) < self.num_envs:
            found.update({arrival.index: arrival for arrival in self.recv(1.0)})
        return [found[index] for index in range(self.num_envs)]

    def _batch(self, arrivals: Sequence[Arrival]) -> Batch:
        infos: dict[str, Any] = {}
        for arrival in arrivals:
            infos = self._add_info(infos, arrival.info, arrival.index)
        return (
            tuple(arrival.observation for arrival in arrivals),
            np.array([arrival.reward for arrival in arrivals], dtype=np.float64),
            np.array([arrival.terminated for arrival in arrivals], dtype=np.bool_),
            np.array([arrival.truncated for arrival in arrivals], dtype=np.bool_),
            infos,
        )


def make_vec(
    id: str | Callable[..., Env],
    n: int,
    *,
    autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    step_timeout_s: float | None = None,
    **kwargs: Any,
) -> VecEnv:
    """Make `n` environments with gymnasium's vector interface; see the head of this file.

    Args:
        id: As `make` takes it, or what makes an environment when it is called.
        n: How many.
        autoreset_mode: gymnasium's. `SAME_STEP`: the step that ends an episode returns the opening
            of the next one, and the end in `infos["final_obs"]` and `infos["final_info"]`.
            `NEXT_STEP`: it returns the end, and the next action is ignored and begins the next one.
        step_timeout_s: Deadline of a call that runs on a thread; None takes the environment's.
        kwargs: Arguments of each environment.

    Raises:
        UnknownEnv: there is no such environment.
        ValueError: n is below 1, or the mode is `DISABLED`.
    """
    if isinstance(id, str):
        return VecEnv(
            lambda: make(id, **kwargs),
            n,
            autoreset_mode=autoreset_mode,
            step_timeout_s=step_timeout_s,
        )
    return VecEnv(
        lambda: id(**kwargs), n, autoreset_mode=autoreset_mode, step_timeout_s=step_timeout_s
    )
