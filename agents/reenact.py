"""Play the recorded actions of an episode again in a fresh environment, turn by turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from turnwise.agents.episode_json import rebuild_task
from turnwise.envs.calls import ToolCall, Written
from turnwise.envs.types import Episode, Message, Turn

MakeEnv = Callable[[], Any]
"""Returns a new `turnwise.envs.Env`."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What a fresh environment showed: after `reset` (turn -1), or after the action of `turn`."""

    turn: int
    observation: str
    state: str
    messages: Sequence[Message]
    """Only those that are new: the opening, or the answer to the action."""
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether the environment takes no further action."""
        return self.terminated or self.truncated


def fresh_env(episode: Episode, make_env: MakeEnv | None = None) -> Any:
    """Return a new environment like the one the episode was played in.

    Args:
        episode: Its `env_id` and `env_kwargs` say which.
        make_env: Used in place of the registry, for an environment that is not registered.

    Raises:
        UnknownEnv: nothing is registered under the episode's `env_id`.
    """
    if make_env is not None:
        return make_env()
    from turnwise.envs.registry import make

    return make(episode.env_id, **episode.env_kwargs)


def as_played(turn: Turn) -> str:
    """Return the action of a recorded turn as the environment took it then."""
    calls = [ToolCall.from_json(call) for call in turn.token_calls]
    return Written(turn.action, calls) if calls else turn.action


def reenact(env: Any, episode: Episode, actions: Sequence[str]) -> Iterator[Moment]:
    """Yield the opening and then what follows each of `actions`, until the environment ends.

    The task and the seed are the episode's, and what the environment reads from outside, as time
    or a network, is what it read then. The environment is the caller's to close.

    Raises:
        TaskChanged: the environment's task class no longer makes the recorded task.
        TapeError: it reads something from outside that it did not read then.
        Exception: whatever the environment raises; `SandboxError` if its machine failed.
    """
    task = rebuild_task(episode.task, env.Task)
    env.feed(episode.nondet)
    observation, info = env.reset(seed=episode.env_seed, options={"task": task})
    opening = _messages(info, "user", observation)
    moment = Moment(-1, observation, info.get("state", ""), opening, info=info)
    yield moment
    for turn, action in enumerate(actions):
        if moment.ended:
            return
        env.feed(episode.turns[turn].nondet)
        observation, reward, terminated, truncated, info = env.step(action)
        moment = Moment(
            turn,
            observation,
            info.get("state", ""),
            _messages(info, "tool", observation),
            float(reward),
            bool(terminated),
            bool(truncated),
            info,
        )
        yield moment


def _messages(info: Mapping[str, Any], role: str, observation: str) -> Sequence[Message]:
    """Return the new messages; the rollout makes the same of an environment that gives none."""
    return info.get("messages") or [{"role": role, "content": observation}]
