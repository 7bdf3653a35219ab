"""What a run says about itself: metrics of a batch of episodes, and alarms when an agent collapses.

An agent that collapses often keeps its reward for a while: it stops calling tools, ends episodes
at once, writes ever longer actions, becomes certain of everything, or moves far away in its late
turns. Each alarm compares a number with its own average over the first steps.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from turnwise.envs.types import Episode, Turn
from turnwise.sandboxes.base import SandboxError

TINY = 1e-2
"""A first average below this counts as this much, so that a rise from nothing is seen too."""


class TooManyLost(SandboxError):
    """More episodes of a batch were lost to errors than `max_failed` allows."""

    retryable = False


def rollout_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Return means over the trainable episodes, and how many were lost.

    `turns` per episode, `calls` per turn, `action_tokens` per turn, `errors` per turn (calls that
    did not work), `length_cut` (actions cut by the token limit), `lost` (share of all episodes).
    """
    kept = [episode for episode in episodes if episode.trainable]
    turns = [turn for episode in kept for turn in episode.turns]
    if not turns:
        return {"lost": 1.0}
    return {
        "success": statistics.fmean(episode.success for episode in kept),
        "reward": statistics.fmean(episode.reward for episode in kept),
        "turns": len(turns) / len(kept),
        "calls": sum(len(turn.calls) for turn in turns) / len(turns),
        "errors": sum("error" in call for turn in turns for call in turn.calls) / len(turns),
        "action_tokens": sum(len(turn.action_ids) for turn in turns) / len(turns),
        "length_cut": sum(turn.finish == "length" for turn in turns) / len(turns),
        "truncated": sum(e.outcome == "truncated" for e in kept) / len(kept),
        "lost": 1 - len(kept) / len(episodes),
        **shares_of_kinds(turns),
    }


def shares_of_kinds(turns: Sequence[Turn]) -> dict[str, float]:
    """Return the share of turns of each kind that the environment tells, as `turns_KIND`."""
    kinds = Counter(turn.kind for turn in turns if turn.kind)
    return {f"turns_{kind}": n / len(turns) for kind, n in sorted(kinds.items())}


def env_steps(episodes: Sequence[Episode]) -> float:
    """Return the turns that the environments have played, an expert's before the agent's too."""
    return float(sum(len(episode.turns) for episode in episodes))


def losses(episodes: Sequence[Episode]) -> dict[str, int]:
    """Return how many episodes were lost, by the reasons of each kind, most first.

    A kind is what stands before the colon: observations and ids behind it differ by episode. Of
    several reasons of a kind the first is told, "and the like".
    """
    kinds: dict[str, list[str]] = {}
    for reason in (e.error or e.outcome.value for e in episodes if not e.outcome.trainable):
        kinds.setdefault(reason.partition(":")[0], []).append(reason)
    found = {_told(reasons): len(reasons) for reasons in kinds.values()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _told(reasons: Sequence[str]) -> str:
    return reasons[0] if len(set(reasons)) == 1 else f"{reasons[0]}, and the like"


def mean_of(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean over the optimizer steps of a batch; of what is called max, the largest."""
    names = dict.fromkeys(name for row in rows for name in row if name != "max_gap")
    seen = {name: [row[name] for row in rows if name in row] for name in names}
    return {
        n: max(v) if n.startswith("max_") else float(statistics.fmean(v)) for n, v in seen.items()
    }


def require_enough(episodes: Sequence[Episode], max_failed: float, max_tokens: int) -> None:
    """Refuse a batch of which too much was lost, or in which there is nothing to train on.

    Raises:
        TooManyLost: more than the share `max_failed` of `episodes` ended in an error; or none
            holds a turn.
    """
    lost = sum(not episode.outcome.trainable for episode in episodes)
    if lost < len(episodes) and not any(episode.trainable for episode in episodes):
        stops = sorted({f"{e.outcome.value} ({e.stop.value})" for e in episodes})
        raise TooManyLost(
            f"no episode of the batch holds a turn to train on: {', '.join(stops)}; is max_tokens "
            f"{max_tokens} shorter than an opening?"
        )
    if lost > max_failed * len(episodes):
        reasons = list(losses(episodes).items())[:3]
        raise TooManyLost(
            f"{lost} of {len(episodes)} episodes were lost to errors, more than max_failed "
            f"{max_failed:g} allows: {'; '.join(f'{n}x {why}' for why, n in reasons)}"
        )


def over_for(seen: Sequence[float], limit: float, steps: int) -> bool:
    """Return whether `seen` was ever above `limit` for so many steps in a row."""
    row = 0
    for value in seen:
        row = row + 1 if value > limit else 0
        if row == steps:
            return True
    return False


@dataclass
class Alarms:
    """Compares each step with the first ones.

    Attributes:
        baseline: steps that are averaged before anything can alarm.
        recent: steps that are averaged to compare with them.
    """

    baseline: int = 10
    recent: int = 5
    history: dict[str, list[float]] = field(default_factory=dict)

    FALLS: ClassVar = {"calls": 0.5, "turns": 0.34, "entropy": 0.1, "reward": 0.5}
    LIMITS: ClassVar = {
        "length_cut": (0.5, "of the actions are cut at max_new_tokens; raise it"),
        "idle_groups": (
            0.99,
            "of the groups of three steps earned the same in all their attempts, or were lost: "
            "where they fail imitate first or take easier tasks, where they succeed harder ones",
        ),
        "teacher_missing": (
            0.5,
            "of the tokens have no finite score of the teacher, which has no say in them: are its "
            "weights finite, does it take sequences as long, and end turns with the same token?",
        ),
        "no_way": (
            0.5,
            "of the attempts are played whole, as expert() did not solve their task; --debug says "
            "where it failed",
        ),
        "prelude_ended": (
            0.5,
            "of the attempts were over before the agent's first turn and teach nothing; `turnwise "
            "check` tries whether the environment follows from task, seed and actions",
        ),
    }
    PATIENCE: ClassVar = {"idle_groups": 3}
    """Steps in a row for which a share must be above its limit; else one."""
    RISES: ClassVar = {"action_tokens": 2.0, "errors": 4.0, "reference_kl": 50.0, "kl_late": 10.0}

    def check(self, metrics: dict[str, float]) -> list[str]:
        """Take the metrics of one step and return one line per alarm."""
        alarms = []
        for name in (*self.FALLS, *self.RISES):
            if name in metrics:
                seen = self.history.setdefault(name, [])
                seen.append(metrics[name])
                alarms += self._compare(name, seen)
        return alarms + self._first_over_limit(metrics)

    def _first_over_limit(self, metrics: dict[str, float]) -> list[str]:
        """One line for each share that is above its limit, at the first step where it is."""
        alarms = []
        for name, (limit, what) in self.LIMITS.items():
            seen = self.history.setdefault(name, [])
            steps = self.PATIENCE.get(name, 1)
            told = over_for(seen, limit, steps)
            seen.append(metrics.get(name, 0.0))
            if over_for(seen, limit, steps) and not told:
                alarms.append(f"{seen[-1]:.0%} {what}")
        return alarms

    def _compare(self, name: str, seen: list[float]) -> list[str]:
        if len(seen) < self.baseline + self.recent:
            return []
        first = statistics.fmean(seen[: self.baseline])
        now = statistics.fmean(seen[-self.recent :])
        fell = first > TINY and now < self.FALLS.get(name, -1.0) * first
        rose = now > self.RISES.get(name, float("inf")) * max(first, TINY)
        verb = "fell" if fell else "rose"
        return [f"{name} {verb} from {first:.3g} to {now:.3g}"] if fell or rose else []

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.history = {name: list(values) for name, values in state["history"].items()}
