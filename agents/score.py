"""Episodes to numbers: what an evaluation reports, with an interval on everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from turnwise.agents.chain import Position
from turnwise.agents.statistics import (
    Interval,
    bootstrap,
    pass_at_k,
    pass_hat_k,
    rate_over_tasks,
)
from turnwise.envs.types import Episode, canonical_json


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an evaluation found."""

    success: Interval
    """Mean over tasks of the share of unmasked attempts that succeeded; see `rate_over_tasks`."""
    reward: Interval
    """Mean return of an episode, bootstrap over tasks."""
    pass_at: Mapping[int, Interval] = field(default_factory=dict)
    """k to the chance that one of k attempts succeeds, over tasks with at least k attempts."""
    pass_hat: Mapping[int, Interval] = field(default_factory=dict)
    """k to the chance that all of k attempts succeed."""
    by: Mapping[str, Mapping[Any, Interval]] = field(default_factory=dict)
    """Task field to its values to success."""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    episodes: int = 0
    masked: int = 0
    """Episodes that say nothing about the agent; they are in no rate."""
    turns: float = 0.0
    """Mean turns of an unmasked episode."""
    tokens: float = 0.0
    """Mean sampled tokens of an unmasked episode."""
    floors: Mapping[str, Report] = field(default_factory=dict)
    record: str = ""
    """Path of the episodes."""
    end: Position | None = None
    """Where the record ended; `verify(record, end)` shows whether it still does."""

    @property
    def above_floors(self) -> bool:
        """Whether the whole interval of `success` lies above that of every floor."""
        return all(self.success.low > floor.success.high for floor in self.floors.values())

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "success": self.success.to_json(),
            "reward": self.reward.to_json(),
            "pass@k": {str(k): value.to_json() for k, value in self.pass_at.items()},
            "pass^k": {str(k): value.to_json() for k, value in self.pass_hat.items()},
            "by": {
                name: {str(key): rate.to_json() for key, rate in rates.items()}
                for name, rates in self.by.items()
            },
            "outcomes": dict(self.outcomes),
            "episodes": self.episodes,
            "masked": self.masked,
            "turns": self.turns,
            "tokens": self.tokens,
            "floors": {name: floor.to_json() for name, floor in self.floors.items()},
            "record": self.record,
            "end": self.end.to_json() if self.end else None,
        }

    def __str__(self) -> str:
        """Return the report as a short table."""
        lines = [f"success     {self.success}", f"reward      {self.reward}"]
        lines += [f"{'pass@' + str(k):<11} {rate}" for k, rate in self.pass_at.items() if k > 1]
        lines += [f"{'pass^' + str(k):<11} {rate}" for k, rate in self.pass_hat.items() if k > 1]
        lines += [f"{name:<11} {floor.success}  (floor)" for name, floor in self.floors.items()]
        for name, rates in self.by.items():
            lines += [f"{f'{name} {key}':<11} {rate}" for key, rate in rates.items()]
        if self.masked:
            spoilt = ", ".join(f"{n} {name}" for name, n in self.outcomes.items())
            lines.append(f"masked      {self.masked} of {self.episodes} episodes ({spoilt})")
        return "\n".join(lines)


def summarise(
    episodes: Sequence[Episode],
    *,
    by: Sequence[str] = (),
    replicas: int = 1,
    level: float = 0.95,
    seed: int = 0,
) -> Report:
    """Return the statistics of `episodes`; the intervals' resampling is seeded by `seed`."""
    scored = [episode for episode in episodes if episode.outcome.trainable]
    tries = _by_task(scored)
    rewards = [fmean(e.reward for e in group) for group in tries]
    return Report(
        success=_rate(scored, level),
        reward=bootstrap(rewards, seed=seed, level=level),
        pass_at={k: _over_tasks(tries, pass_at_k, k, level) for k in range(1, replicas + 1)},
        pass_hat={k: _over_tasks(tries, pass_hat_k, k, level) for k in range(1, replicas + 1)},
        by={name: _breakdown(scored, name, level) for name in by},
        outcomes=dict(Counter(episode.outcome.value for episode in episodes)),
        episodes=len(episodes),
        masked=len(episodes) - len(scored),
        turns=_mean(len(episode.turns) for episode in scored),
        tokens=_mean(sum(len(t.action_ids) for t in episode.turns) for episode in scored),
    )


def _by_task(episodes: Iterable[Episode]) -> list[list[Episode]]:
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.group, []).append(episode)
    return list(groups.values())


def _rate(episodes: Sequence[Episode], level: float) -> Interval:
    tries = _by_task(episodes)
    return rate_over_tasks(
        [fmean(e.success for e in group) for group in tries], len(episodes), level
    )


def _over_tasks(
    tries: Sequence[Sequence[Episode]],
    estimate: Callable[[int, int, int], float],
    k: int,
    level: float,
) -> Interval:
    counts = [(len(group), sum(e.success for e in group)) for group in tries if len(group) >= k]
    estimates = [estimate(n, c, k) for n, c in counts]
    rate = rate_over_tasks(estimates, sum(n for n, _ in counts), level)
    return replace(rate, n=len(counts))


def _breakdown(episodes: Sequence[Episode], name: str, level: float) -> dict[Any, Interval]:
    parts: dict[Any, list[Episode]] = {}
    for episode in episodes:
        value = episode.task.to_json().get(name)
        plain = value is None or isinstance(value, str | int | float)
        parts.setdefault(value if plain else canonical_json(value), []).append(episode)
    return {key: _rate(parts[key], level) for key in sorted(parts, key=_order)}


def _order(key: Any) -> tuple[bool, float, str]:
    """Sort numbers by size and before everything else."""
    number = isinstance(key, int | float)
    return not number, key if number else 0.0, str(key)


def _mean(values: Iterable[float]) -> float:
    collected = list(values)
    return fmean(collected) if collected else 0.0
