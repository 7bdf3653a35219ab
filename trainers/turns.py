"""The turns of a batch as columns: what credit assignment reads, and the returns and keys on it.

Shape suffixes: N turns of all trainable episodes, K history lengths. A *return* is a number per
turn, a *key* an int64 per turn; turns with equal keys are compared with each other and -1 means
"compared with nothing". Structure comes from `traj_N` and `turn_N`, never from rewards or masks:
a turn without a reward is still a turn. NumPy only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from turnwise.envs.types import Episode, Group, Turn
from turnwise.trainers.ranges import above, at_least, shares

Returns = Callable[["TurnTable"], np.ndarray]
"""float64 [N]: what each turn is held responsible for."""
Keys = Callable[["TurnTable"], np.ndarray]
"""int64 [N]: which turns are compared; -1 is nobody."""

NOBODY = -1


@dataclass(frozen=True, eq=False)
class TurnTable:
    """N turns of the trainable episodes of a batch, in the order groups, episodes, turns.

    Example:
        Two attempts at one task, of two turns and one: `traj_N=[0, 0, 1]`, `turn_N=[0, 1, 0]`,
        `group_N=[0, 0, 0]`, `reward_N=[0., 1., 0.]`.
    """

    traj_N: np.ndarray
    """int64, dense: 0 .. number of episodes - 1."""
    turn_N: np.ndarray
    """int64: 0 at the first turn of each episode."""
    group_N: np.ndarray
    """int64: index of the group."""
    reward_N: np.ndarray
    """float64: the reward that came after the turn."""
    anchor_N: np.ndarray
    """int64: key of the state that was acted in, within its group; -1 where no state is known."""
    history_NK: np.ndarray
    """int64: column k-1 keys the present state with the k states before it; -1 if t < k."""
    tokens_N: np.ndarray
    """int64: sampled tokens of the turn."""

    def __len__(self) -> int:
        return len(self.traj_N)

    def take(self, rows: np.ndarray) -> TurnTable:
        """Return the rows `rows` (indices or a mask) as a table, in that order."""
        return TurnTable(**{name: column[rows] for name, column in vars(self).items()})


def turn_table(groups: Sequence[Group], history: int = 2) -> TurnTable:
    """Return every turn of every trainable episode of `groups`, in that nested order.

    A crashed attempt leaves its group smaller; nothing takes its place. Groups never share keys,
    even when they hold the same task.

    Args:
        groups: Attempts by task; `group.trainable` says which episodes count.
        history: K, the longest history that gets a key.

    Raises:
        ValueError: a reward is not finite; the message names the episode and the turn.
    """
    rows = list(_rows(groups, history))
    columns = list(zip(*rows, strict=True)) or [()] * 7
    traj, turn, group, reward, anchor, past, tokens = columns
    return TurnTable(
        traj_N=np.array(traj, np.int64),
        turn_N=np.array(turn, np.int64),
        group_N=np.array(group, np.int64),
        reward_N=np.array(reward, np.float64),
        anchor_N=np.array(anchor, np.int64),
        history_NK=np.array(past, np.int64).reshape(len(rows), history),
        tokens_N=np.array(tokens, np.int64),
    )


def _rows(groups: Sequence[Group], history: int) -> Iterator[tuple[Any, ...]]:
    attempts = ((g, episode) for g, group in enumerate(groups) for episode in group.trainable)
    for traj, (g, episode) in enumerate(attempts):
        turns = episode.turns
        _check_rewards(episode, turns)
        states = [_state(turn) for turn in turns]
        for t, turn in enumerate(turns):
            past = range(min(t, history) + 1)
            keys = [_key(g, states[t - k : t + 1]) for k in past] + [NOBODY] * (history - t)
            yield traj, t, g, turn.reward, keys[0], keys[1:], len(turn.action_ids)


def _check_rewards(episode: Episode, turns: Sequence[Turn]) -> None:
    for t, turn in enumerate(turns):
        if not math.isfinite(turn.reward):
            raise ValueError(
                f"episode {episode.id!r} has reward {turn.reward!r} at turn {t}; rewards must be "
                "finite: repair the grader, or end such episodes with Outcome.JUDGE_ERROR"
            )


def _state(turn: Turn) -> tuple[str, str] | None:
    """The canonical state; the observation where the environment hashes none, as GiGPO does."""
    if turn.state_before:
        return ("state", turn.state_before)
    return ("observation", turn.observation) if turn.observation else None


def _key(group: int, states: Sequence[tuple[str, str] | None]) -> int:
    if None in states:
        return NOBODY
    text = repr((group, *states)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


# Returns


def outcome(table: TurnTable) -> np.ndarray:
    """R_i, the undiscounted sum of the episode's rewards, at each of its turns. [N]"""
    return np.bincount(table.traj_N, table.reward_N)[table.traj_N]


def reward_to_go(gamma: float = 1.0) -> Returns:
    """R_it = sum_{s>=t} gamma^(s-t) r_is over the turns of one episode, whatever the row order."""
    shares(gamma=gamma)
    return partial(_reward_to_go, gamma=gamma)


def _reward_to_go(table: TurnTable, gamma: float) -> np.ndarray:
    returns_N = table.reward_N.copy()
    order_N = np.lexsort((table.turn_N, table.traj_N))
    last_N = np.append(np.diff(table.traj_N[order_N]) != 0, True)[: len(table)]
    ends_N = np.flatnonzero(last_N)[np.cumsum(last_N) - last_N]
    to_go_N = ends_N - np.arange(len(table))
    # One step per turn of the longest episode: every episode at once, from its end backwards.
    by_distance_N = np.argsort(to_go_N, kind="stable")
    for here in np.split(by_distance_N, np.cumsum(np.bincount(to_go_N))[:-1])[1:]:
        returns_N[order_N[here]] += gamma * returns_N[order_N[here + 1]]
    return returns_N


def _last(table: TurnTable) -> np.ndarray:
    """Whether a turn is the last of its trajectory. [N]"""
    last = np.full(table.traj_N.max(initial=-1) + 1, -1)
    np.maximum.at(last, table.traj_N, table.turn_N)
    return np.asarray(table.turn_N == last[table.traj_N])


def final_reward(table: TurnTable) -> np.ndarray:
    """The reward of the episode's last turn, at each of its turns. [N]"""
    return np.bincount(table.traj_N, table.reward_N * _last(table))[table.traj_N]


def rewards_on_the_way(table: TurnTable) -> np.ndarray:
    """The rewards of this turn and those after it, without that of the last turn. [N]"""
    early = replace(table, reward_N=np.where(_last(table), 0.0, table.reward_N))
    return _reward_to_go(early, 1.0)


def shortened(returns: Returns, limit: int, buffer: int) -> Returns:
    """`returns` plus DAPO's soft overlong punishment (arXiv:2503.14476 eq. 13), by episode.

    0 up to `limit - buffer` sampled tokens, then linear down to -1 at `limit` and beyond.
    """
    above(0, buffer=buffer)
    at_least(buffer, limit=limit)
    return partial(_shortened, returns=returns, limit=limit, buffer=buffer)


def _shortened(table: TurnTable, returns: Returns, limit: int, buffer: int) -> np.ndarray:
    length_N = np.bincount(table.traj_N, table.tokens_N)[table.traj_N]
    return returns(table) + np.clip((limit - buffer - length_N) / buffer, -1.0, 0.0)


# Keys


def trajectory(table: TurnTable) -> np.ndarray:
    """Every turn of every attempt at the task."""
    return table.group_N


def turn(table: TurnTable) -> np.ndarray:
    """The turns with the same index."""
    return table.group_N * (table.turn_N.max(initial=0) + 1) + table.turn_N


def anchor(table: TurnTable) -> np.ndarray:
    """The turns that acted in the same state."""
    return table.anchor_N


def history(k: int) -> Keys:
    """The turns that acted in the same state after the same k states; nobody before turn k."""
    at_least(1, k=k)
    return partial(_history, k=k)


def _history(table: TurnTable, k: int) -> np.ndarray:
    if not 1 <= k <= table.history_NK.shape[1]:
        raise ValueError(
            f"history({k}) needs a table with at least {k} history columns, and this one has "
            f"{table.history_NK.shape[1]}: build it with turn_table(groups, history={k})"
        )
    return table.history_NK[:, k - 1]


def batch(table: TurnTable) -> np.ndarray:
    """Every turn of the batch, across tasks."""
    return np.zeros(len(table), np.int64)
