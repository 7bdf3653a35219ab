"""Replay a recorded episode: four strengths, and a fork.

    view      read it                                             no environment, no model
    rescore   its actions under today's rewards, old beside new   a fresh environment
    tokens    its token ids, rendered again                       a fresh environment, a tokenizer
    execute   everything the agent saw, until the first difference    a fresh environment
    branch    its first k turns, then whoever you like

A fresh environment is made from the episode's `env_id` and `env_kwargs` and gets the same seed and
task. Nothing is sampled: the recorded actions are the agent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from turnwise.agents.drift import tokens
from turnwise.agents.episode_json import TaskChanged
from turnwise.agents.reenact import MakeEnv, Moment, as_played, fresh_env, reenact
from turnwise.agents.transcript import view
from turnwise.envs.types import Episode, Message, Outcome, Stop, Turn, canonical_json
from turnwise.sandboxes.base import SandboxError

__all__ = [
    "Branch",
    "Divergence",
    "ReplayDiverged",
    "Rescored",
    "Rescoring",
    "branch",
    "execute",
    "rescore",
    "tokens",
    "view",
]


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first difference between a record and its re-execution."""

    turn: int
    """The turn, from 0, whose action was answered otherwise; -1 is the start."""
    field: str
    recorded: Any
    got: Any

    def to_json(self) -> dict[str, Any]:
        """Return the fields; values that JSON cannot hold become their `repr`."""
        values = {"recorded": _plain(self.recorded), "got": _plain(self.got)}
        return {"turn": self.turn, "field": self.field, **values}

    def __str__(self) -> str:
        """Return one line: where, and both values around the first difference."""
        recorded, got = _excerpts(self.recorded, self.got)
        where = f"turn {self.turn}" if self.turn >= 0 else "the start"
        return f"{where}: {self.field} was {recorded}, is now {got}"


class ReplayDiverged(RuntimeError):
    """The environment no longer does what the record says; `divergence` says where first."""

    def __init__(self, episode: Episode, divergence: Divergence) -> None:
        super().__init__(f"episode {episode.id} cannot be followed: {divergence}")
        self.divergence = divergence


def execute(episode: Episode, make_env: MakeEnv | None = None) -> Divergence | None:
    """Re-execute the episode; return the first divergence, or None if there is none.

    Compared at every turn: observation, state hash, reward and its parts, tool calls, the two
    flags, and what was read from outside (time, a network), which is given to it as it was read
    then; at the end also success, outcome and the last observation. An environment that raises or
    refuses the task has diverged there.

    Raises:
        SandboxError: the machine failed, which says nothing about the episode.
        UnknownEnv: the environment is not installed.
    """
    if not episode.turns and episode.stop in (Stop.ERROR, Stop.DEADLINE):
        return None  # it failed before anything was played, so there is nothing to compare
    with closing(fresh_env(episode, make_env)) as env:
        return _first_divergence(env, episode, len(episode.turns))


@dataclass(frozen=True, slots=True)
class Rescored:
    """One turn's reward, as recorded and as it is now; `now` is None if it was not reached."""

    turn: int
    recorded: float
    now: float | None
    recorded_parts: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rescoring:
    """An episode under today's rewards, the recorded ones beside them."""

    turns: tuple[Rescored, ...]
    recorded: float
    now: float
    recorded_success: bool
    success: bool
    complete: bool
    """Whether the environment took all recorded actions; if not, `now` lacks the rest."""

    @property
    def changed(self) -> bool:
        """Whether anything differs."""
        pairs = [(row.recorded, row.now) for row in self.turns]
        return any(old != new for old, new in pairs) or self.recorded_success != self.success


def rescore(episode: Episode, make_env: MakeEnv | None = None) -> Rescoring:
    """Give the recorded actions to a fresh environment and collect today's rewards.

    Unlike `execute` it goes on after a difference: a changed reward is what one looks for.

    Raises:
        TaskChanged: the environment's task class no longer makes the recorded task.
        Exception: whatever the environment raises.
    """
    with closing(fresh_env(episode, make_env)) as env:
        _, *moments = reenact(env, episode, [as_played(turn) for turn in episode.turns])
    rows = [_rescored(k, turn, moments) for k, turn in enumerate(episode.turns)]
    ended = bool(moments) and moments[-1].ended
    success = _verdict(moments[-1])[1] if ended else False
    return Rescoring(
        turns=tuple(rows),
        recorded=episode.reward,
        now=math.fsum(moment.reward for moment in moments),
        recorded_success=episode.success,
        success=success,
        complete=len(moments) == len(episode.turns),
    )


@dataclass(frozen=True)
class Branch:
    """A live environment at turn `turn` of a recorded episode, ready for any policy.

    Example:
        with branch(episode, until=3) as fork:
            action = policy(fork.messages)
            observation, reward, terminated, truncated, info = fork.env.step(action)
    """

    env: Any
    turn: int
    """How many turns were played; the next action is this turn's."""
    observation: str
    state: str
    messages: tuple[Message, ...]
    """The conversation so far: opening, the agent's actions, answers."""
    tools: tuple[dict[str, Any], ...] = ()

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def __enter__(self) -> Branch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def branch(episode: Episode, until: int, make_env: MakeEnv | None = None) -> Branch:
    """Return a fresh environment fast-forwarded by the first `until` recorded actions.

    The caller closes the result.

    Raises:
        ValueError: the episode has fewer turns, or had ended by then.
        ReplayDiverged: the environment left the record on the way; a fork of it would be another
            episode's.
    """
    if not 0 <= until <= len(episode.turns):
        raise ValueError(
            f"episode {episode.id} has {len(episode.turns)} turns; until must be between 0 and "
            f"{len(episode.turns)}, got {until}"
        )
    env = fresh_env(episode, make_env)
    try:
        return _forward(env, episode, until)
    except BaseException:
        env.close()
        raise


def _forward(env: Any, episode: Episode, until: int) -> Branch:
    moments: list[Moment] = []
    if divergence := _first_divergence(env, episode, until, moments.append):
        raise ReplayDiverged(episode, divergence)
    if moments[-1].ended:
        raise ValueError(
            f"episode {episode.id} ended after turn {until - 1}: choose an earlier one"
        )
    messages = list(moments[0].messages)
    for turn, moment in zip(episode.turns, moments[1:], strict=False):
        messages += [{"role": "assistant", "content": turn.action}, *moment.messages]
    tools = tuple(moments[0].info.get("tools", ()))
    last = moments[-1]
    return Branch(env, until, last.observation, last.state, tuple(messages), tools)


def _first_divergence(
    env: Any, episode: Episode, until: int, watch: Any = lambda moment: None
) -> Divergence | None:
    now = -1
    actions = [as_played(turn) for turn in episode.turns[:until]]
    try:
        for moment in reenact(env, episode, actions):
            watch(moment)
            for name, recorded, got in _compared(episode, moment):
                if recorded != got:
                    return Divergence(moment.turn, name, recorded, got)
            now = moment.turn + 1
    except SandboxError:
        raise
    except TaskChanged as error:
        return Divergence(-1, "task", episode.task.key, str(error))
    except Exception as error:  # a bug of the environment is a finding here, not our crash
        return Divergence(now, "exception", "", f"{type(error).__name__}: {error}")
    return None


def _compared(episode: Episode, moment: Moment) -> Iterator[tuple[str, Any, Any]]:
    """Yield (field, recorded, got) in the order in which differences tell the most."""
    turns, k = episode.turns, moment.turn
    last = k == len(turns) - 1
    if k >= 0:
        yield "calls", _normal(turns[k].calls), _normal(moment.info.get("calls") or ())
        yield from _compared_flags(episode, moment, last)
        yield from _compared_step(turns[k], moment)
    shown = episode.final_observation if last else turns[k + 1].observation
    yield ("final_observation" if last else "observation"), shown, moment.observation
    if not last:
        yield "state_before", turns[k + 1].state_before, moment.state
    read = turns[k].nondet if k >= 0 else episode.nondet
    yield "nondet", list(read), list(moment.info.get("nondet") or ())


def _compared_step(turn: Turn, moment: Moment) -> Iterator[tuple[str, Any, Any]]:
    yield "reward", turn.reward, moment.reward
    yield "rewards", dict(turn.rewards), dict(moment.info.get("rewards") or {})
    yield "state_after", turn.state_after, moment.state


def _compared_flags(episode: Episode, moment: Moment, last: bool) -> Iterator[tuple[str, Any, Any]]:
    stop = episode.stop if last else None
    yield "terminated", stop is Stop.TERMINATED, moment.terminated
    if stop is not Stop.TERMINATED:
        yield "truncated", stop is Stop.TRUNCATED, moment.truncated
    if moment.ended:
        outcome, success = _verdict(moment)
        yield "success", episode.success, success
        yield "outcome", episode.outcome, outcome


def _verdict(moment: Moment) -> tuple[Outcome, bool]:
    """Return how an ended episode counts, by the rule of the rollout."""
    named = Outcome.OK if moment.terminated else Outcome.TRUNCATED
    outcome = Outcome(moment.info.get("outcome", named))
    success = moment.info.get("success", moment.terminated and moment.reward > 0)
    return outcome, bool(success) and outcome is Outcome.OK


def _rescored(k: int, turn: Turn, moments: list[Moment]) -> Rescored:
    if k >= len(moments):
        return Rescored(k, turn.reward, None, turn.rewards)
    return Rescored(
        k, turn.reward, moments[k].reward, turn.rewards, dict(moments[k].info.get("rewards", {}))
    )


def _normal(calls: Any) -> str:
    return canonical_json(list(calls))


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | dict | None) else repr(value)


def _excerpts(recorded: Any, got: Any, width: int = 60) -> tuple[str, str]:
    """Return both values, long texts cut to where they begin to differ."""
    if not (isinstance(recorded, str) and isinstance(got, str)):
        return repr(recorded), repr(got)
    pairs = zip(recorded, got, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(recorded), len(got)))
    start = max(0, same - width // 3) if same > width // 2 else 0
    lead = f"(from character {start}) " if start else ""
    return lead + repr(recorded[start : start + width]), repr(got[start : start + width])
