"""Any environment of gymnasium as an environment of text.

    env = from_gymnasium("FrozenLake-v1", is_slippery=False)
    env = make("gymnasium/FrozenLake-v1", is_slippery=False)      # the same

The classic small worlds (FrozenLake, Taxi, CliffWalking, Blackjack) are described in words. Of any
other one, say what an episode may earn, and how it reads, if numbers will not do:

    from_gymnasium("CartPole-v1", reward_range=(0, 500), actions=["left", "right"], render=in_words)
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
from gymnasium.error import DependencyNotInstalled, DeprecatedEnv, UnregisteredEnv

from turnwise.envs.adapters.functions import function_at, place_of
from turnwise.envs.adapters.gymnasium_actions import Unreadable, action_text
from turnwise.envs.adapters.gymnasium_worlds import Ending, describe, world_of
from turnwise.envs.adapters.planning import shortest_plan, without_chance
from turnwise.envs.base import Response, TextEnv
from turnwise.envs.extras import MissingExtra
from turnwise.envs.knobs import count
from turnwise.envs.registry import UnknownEnv, make
from turnwise.envs.sealing import opened, sealed
from turnwise.envs.task_range import TaskRange
from turnwise.envs.types import Outcome, Task, digest

__all__ = ["Ending", "FromGymnasium", "describe", "from_gymnasium"]

Render = Callable[[Any, "gymnasium.Env[Any, Any]"], str]
"""(observation, the environment of gymnasium) to what the agent reads."""
Success = Callable[[Ending], bool]
"""How an episode ended to whether that is a success."""
TASKS = 100_000
"""Per split."""


@dataclass(frozen=True, kw_only=True)
class Seeded(Task):
    """One episode of a gymnasium environment: its seed decides the start and all luck."""

    split: str
    seed: int


class FromGymnasium(TextEnv):
    """A gymnasium environment that is read and answered as text.

    The rewards of an episode add up to its return, mapped so that `reward_range` becomes 0 to 1.
    An episode that is cut before its world ends it earns nothing for what it did not lose: who
    stands still is not better off than who fails. The metric `return` is the return as it was.

    An action is a name or a number; several numbers where the action space has several. What is
    neither is answered, and the world does not move; `max_errors` of those in a row end the
    episode. Where the world is a table without chance there is an `expert()`.

    Args:
        env: The id that gymnasium knows, as `Taxi-v4`.
        render: (observation, environment) to text; or where that function is: `module:function`.
        actions: Names, where the action space is `Discrete`.
        success: `Ending` to bool, or `module:function`. By default: the environment's reward
            threshold is reached; without one, the episode terminated with a reward above zero.
        reward_range: Least and most that the rewards of an episode can add up to. Needed unless the
            world is known; a return outside counts as the nearer end.
        max_turns: By default the environment's own limit, else 200.
        arguments: Of the environment itself, as `is_slippery=False`.

    Raises:
        UnknownEnv: gymnasium knows no such environment.
        MissingExtra: it needs a package that is not installed.
        TypeError: its actions cannot be written as text, or it takes no such argument.
        ValueError: the range or the names do not fit.
    """

    Task: ClassVar[type[Task]] = Seeded
    max_errors: int = 3

    def __init__(
        self,
        *,
        env: str,
        render: Render | str | None = None,
        actions: Sequence[str] | None = None,
        success: Success | str | None = None,
        reward_range: Sequence[float] | None = None,
        max_turns: int | None = None,
        **arguments: Any,
    ) -> None:
        self.gym = _made(env, arguments)
        self.known = known = world_of(env, self.gym)
        if max_turns is not None:
            count("max_turns", max_turns, 1)
        self.max_turns = max_turns or self.gym.spec.max_episode_steps or known.max_turns
        self.says = action_text(self.gym.action_space, actions or known.actions)
        self.show: Render = function_at(render) or known.show
        self.won: Success = function_at(success) or known.won
        self.low, self.high = _range(env, reward_range or known.returns(self.max_turns))
        self.chance_reward = known.chance_reward
        self.fast = known.fast  # type: ignore[misc]  # each world has a pace of its own
        self._plan: dict[int, int] = {}
        table = getattr(self.gym.unwrapped, "P", None)
        if isinstance(table, dict) and without_chance(table):
            self.expert = self._planned  # an environment that has no such attribute has no expert

    def tasks(self, split: str) -> Sequence[Seeded]:
        """Return the tasks of a split: seeds that no other split has."""
        first = TASKS * self.splits.index(self.known_split(split))
        return TaskRange(lambda i: Seeded(split=split, seed=first + i), TASKS)

    def system(self) -> str:
        """Return the rules, and how an action is written."""
        return f"{self.known.rules(self.gym)}\nAnswer with {self.says.hint}."

    def setup(self, task: Any, rng: random.Random) -> str:
        """Start the world by the task's seed and return how it looks."""
        self.seen, _ = self.gym.reset(seed=task.seed)
        self.played: list[str] = []
        self.steps: list[float] = []
        self.over = False
        self.mistakes = 0
        return self.show(self.seen, self.gym)

    def respond(self, action: str) -> Response:
        """Play an action, or answer what is none."""
        self.played.append(action)
        try:
            value = self.says.read(action)
        except Unreadable as error:
            return self._refuse(str(error))
        self.mistakes = 0
        self.seen, reward, terminated, truncated, _ = self.gym.step(value)
        self.steps.append(float(reward))
        self.over = bool(terminated or truncated)
        answer = Response(self.show(self.seen, self.gym), self.steps[-1] / self._span)
        answer.terminated, answer.truncated = bool(terminated), bool(truncated and not terminated)
        answer.outcome = Outcome.TRUNCATED if answer.truncated else Outcome.OK
        return answer

    def _refuse(self, why: str) -> Response:
        self.mistakes += 1
        answer = Response(f"ToolError[bad_command] {why}"[:400], info={"error": "bad_command"})
        if self.mistakes >= self.max_errors:
            answer.truncated, answer.outcome = True, Outcome.AGENT_ERROR
        return answer

    def judge(self, answer: Response) -> None:
        """Let the rewards add up to the mapped return, and say whether it was a success."""
        total = math.fsum(self.steps)
        lost = self.low if self.over else max(self.low, 0.0)
        paid = total / self._span - answer.reward
        answer.reward = min(max((total - lost) / self._span, 0.0), 1.0) - paid
        answer.metrics["return"] = total
        last = self.steps[-1] if self.steps else 0.0
        ending = Ending(total, last, answer.terminated, self.over and not answer.terminated)
        if answer.outcome is not Outcome.AGENT_ERROR and self.won(ending):
            answer.success, answer.outcome = True, Outcome.OK
            answer.info["outcome"] = Outcome.OK.value  # also of one that is truncated in success

    @property
    def _span(self) -> float:
        return self.high - self.low

    def _planned(self) -> str:
        """Return the next action on the shortest way to success."""
        world = self.gym.unwrapped
        if not self._plan:
            won = self.won
            self._plan = shortest_plan(world.P, lambda pay: won(Ending(pay, pay, True, False)))
        return self.says.names[self._plan[int(world.s)]]

    def random_action(self, rng: random.Random) -> str:
        """Return any action of the space."""
        return self.says.draw(rng)

    def state_hash(self) -> str:
        """Hash what is seen, where that is all there is; empty for an unknown world."""
        return digest([self.task.key, describe(self.seen)]) if self.known.observed else ""

    def snapshot(self) -> bytes:
        """Return the task and the actions so far; `restore` plays them again."""
        task = self.task.to_json()
        return sealed(self, {"seed": self.np_random_seed, "task": task, "actions": self.played})

    def restore(self, saved: bytes) -> None:
        """Go back to where `snapshot` was taken; restore only bytes that you trust.

        Raises:
            WrongSnapshot: they are of another environment, or damaged.
        """
        state = opened(self, saved)
        self.reset(seed=state["seed"], options={"task": Seeded(**state["task"])})
        for action in state["actions"]:
            self.step(action)

    def close(self) -> None:
        """Close the environment of gymnasium. Safe to call twice."""
        self.gym.close()


def from_gymnasium(id: str, **options: Any) -> FromGymnasium:
    """Return the gymnasium environment `id` as one of text.

    A record can name it, and a replay make it again, if the functions among `options` can be
    imported; not with a lambda or a function of a script.

    Args:
        id: What gymnasium knows, as `FrozenLake-v1`.
        options: See `FromGymnasium`.

    Raises:
        UnknownEnv, MissingExtra, TypeError, ValueError: see there.
    """
    places = {
        name: place_of(value) if callable(value) else value for name, value in options.items()
    }
    if None in (places[name] for name in options if callable(options[name])):
        return FromGymnasium(env=id, **options)
    made = make(f"gymnasium/{id}", **places)
    assert isinstance(made, FromGymnasium)
    return made


def _made(id: str, arguments: Mapping[str, Any]) -> Any:
    try:
        return gymnasium.make(id, disable_env_checker=True, **arguments)
    except (UnregisteredEnv, DeprecatedEnv) as error:
        raise UnknownEnv(f"no gymnasium environment {id!r}: {error}") from error
    except (DependencyNotInstalled, ModuleNotFoundError) as error:
        if ":" in id and getattr(error, "name", None) is None:  # the module before the colon
            raise UnknownEnv(f"no gymnasium environment {id!r}: {error}") from error
        raise MissingExtra(f"{id} needs a package that is not installed: {error}") from error
    except TypeError as error:
        raise TypeError(f"gymnasium cannot make {id} with {dict(arguments)}: {error}") from error


def _range(id: str, given: Sequence[float] | None) -> tuple[float, float]:
    if given is None:
        raise ValueError(
            f"nobody can know what an episode of {id} may earn: give the least and the most that "
            "its rewards can add up to, as reward_range=(0, 500)"
        )
    low, high = map(float, given)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"reward_range must be two finite numbers, least first, got {given!r}")
    return low, high
