"""`Lanes`: environments that play one episode after another, each sent to and received alone.

The machine under `make_vec`: it begins the next episode when one has ended, and replaces an
environment that raised or overran its deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, SupportsIndex

from gymnasium.error import ResetNeeded

from turnwise.envs.base import Env
from turnwise.envs.pool import Answer, EnvPool, StepTimeout
from turnwise.envs.seeds import derive
from turnwise.envs.types import Outcome
from turnwise.sandboxes.base import SandboxError


class Arrival(NamedTuple):
    """What one environment answered."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks for
    observation: str
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


@dataclass(slots=True)
class _Slot:
    """Where one environment is."""

    seed: int = 0
    episode: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the present episode."""
    started: bool = False
    resetting: bool = False
    busy: bool = False
    over: bool = True
    """It takes no action before it has been reset."""
    retried: bool = False
    last: Arrival | None = None
    """The step that ended the episode before, until the next one has begun."""
    error: Exception | None = None


class Lanes:
    """`n` environments over an `EnvPool`.

    Args:
        make_env: Returns a new environment.
        n: How many.
        same_step: Whether the next episode begins in the step that ended the one before, or with
            the next action, which is ignored.
        step_timeout_s: Deadline of a call that runs on a thread; None takes the environment's.
    """

    def __init__(
        self,
        make_env: Callable[[], Env],
        n: int,
        *,
        same_step: bool = True,
        step_timeout_s: float | None = None,
    ) -> None:
        self.pool = EnvPool(make_env, n, step_timeout_s=step_timeout_s)
        self.same_step = same_step
        self._slots = [_Slot() for _ in range(n)]

    @property
    def busy(self) -> list[int]:
        """Those that were sent to and have not been received."""
        return [index for index, slot in enumerate(self._slots) if slot.busy]

    def error(self, index: int) -> Exception | None:
        """What environment `index` raised in its last call."""
        return self._slots[index].error

    def reset(self, index: int, seed: int, options: Mapping[str, Any]) -> None:
        """Begin the first episode of environment `index`; its opening comes from `recv`.

        The seeds of its later episodes follow from this one; they are of the same split.
        """
        self._slots[index] = _Slot(seed, options=options)
        self._begin(index)

    def send(self, index: int, action: str) -> None:
        """Step one environment; its answer comes from a later `recv`.

        Raises:
            IndexError, TypeError: there is no such environment.
            ValueError: its last answer has not been received.
            ResetNeeded: before `reset`.
        """
        self._require_one(index)
        slot = self._slots[index]
        if slot.busy:
            raise ValueError(f"environment {index} has not answered yet: call recv() first")
        if not slot.started:
            raise ResetNeeded("call reset() before the first action")
        if slot.over:  # the action is ignored, as gymnasium's NEXT_STEP has it
            self._next(index)
        else:
            slot.busy = True
            self.pool.send(index, "step", action)

    def _require_one(self, index: int) -> None:
        known = f"the environments are 0 to {len(self._slots) - 1}"
        if not isinstance(index, SupportsIndex) or isinstance(index, bool):
            raise TypeError(f"send one action to one environment, got index {index!r}; {known}")
        if not 0 <= index < len(self._slots):
            raise IndexError(f"no environment {index}; {known}")

    def recv(self, timeout_s: float = 0.0) -> list[Arrival]:
        """Return every answer that is there; wait up to `timeout_s` for the first one."""
        arrivals: list[Arrival] = []
        deadline = time.monotonic() + timeout_s
        while not arrivals and self.busy:
            answers = self.pool.recv(max(deadline - time.monotonic(), 0.0))
            arrivals = [arrival for arrival in map(self._arrived, answers) if arrival is not None]
            if not answers and time.monotonic() >= deadline:
                break
        return arrivals

    def _next(self, index: int) -> None:
        slot = self._slots[index]
        slot.episode += 1
        slot.options = {name: slot.options[name] for name in slot.options if name == "split"}
        self._begin(index)

    def _begin(self, index: int) -> None:
        slot = self._slots[index]
        slot.busy, slot.started, slot.resetting, slot.error = True, True, True, None
        seed = derive(slot.seed, "episode", slot.episode) if slot.episode else slot.seed
        self.pool.send(index, "reset", seed=seed, options=slot.options)

    def _arrived(self, answer: Answer) -> Arrival | None:
        """Return what the answer means for the caller; None while there is more to wait for."""
        slot = self._slots[answer.index]
        if answer.error is not None and not isinstance(answer.error, Exception):
            raise answer.error
        if slot.resetting:
            return self._begun(slot, answer)
        slot.busy = False
        step = self._failed(answer) if answer.error else Arrival(answer.index, *answer.value)
        slot.over = step.terminated or step.truncated
        if slot.over and self.same_step:
            slot.last = step
            self._next(answer.index)
            return None
        return step

    def _begun(self, slot: _Slot, answer: Answer) -> Arrival | None:
        if answer.error is not None and not slot.retried:
            self.pool.replace(answer.index)
            slot.retried = True
            self._begin(answer.index)
            return None
        first = self._failed(answer) if answer.error else self._opening(answer)
        slot.over = slot.error is not None
        slot.busy = slot.resetting = slot.retried = False
        if (last := slot.last) is None:
            return first
        slot.last = None
        info = {**first.info, "final_obs": last.observation, "final_info": last.info}
        return last._replace(observation=first.observation, info=info)

    def _opening(self, answer: Answer) -> Arrival:
        observation, info = answer.value
        return Arrival(answer.index, observation, 0.0, False, False, info)

    def _failed(self, answer: Answer) -> Arrival:
        """Replace an environment that raised; return what its episode ends with."""
        error = answer.error
        assert isinstance(error, Exception)
        self._slots[answer.index].error = error
        self.pool.replace(answer.index)
        machine = isinstance(error, SandboxError | StepTimeout)
        outcome = Outcome.INFRA_ERROR if machine else Outcome.ENV_ERROR
        info = {"outcome": outcome.value, "detail": f"{type(error).__name__}: {error}"}
        return Arrival(answer.index, "", float("nan"), False, True, info)
