"""The curriculum's part in a run: where each attempt begins and ends, and what that follows from.

`Tutor` is to the teacher what `Coach` is to the curriculum.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from turnwise.agents.jobs import Job
from turnwise.agents.policy import Policy
from turnwise.agents.prelude import ended_in_prelude
from turnwise.agents.rollout import Settings
from turnwise.envs.base import Env
from turnwise.envs.types import Episode, Group, Task
from turnwise.trainers.curriculum import Curriculum, Depth
from turnwise.trainers.mixes import Progress
from turnwise.trainers.ways import NoExpert, Way, Ways, ahead

DEEPEST = ("teacher_drift_late", "teacher_drift_middle", "teacher_drift")
"""An episode of one turn has no last third; the first of these that is there counts."""


class Coach:
    """Decides how deep the attempts of a run go.

    Args:
        curriculum: depth from progress.
        steps: of the whole run.
        make_env: for ways to be found in.
        settings: how that is played.
        guide: who shows the ways; None is the environment's own expert.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        steps: int,
        make_env: Callable[[], Env],
        settings: Settings | None = None,
        guide: Policy | None = None,
    ) -> None:
        self.curriculum, self.steps, self.guide = curriculum, steps, guide
        self.ways = Ways(make_env, settings or Settings(), guide)
        self.success: list[float] = []
        self.drift: list[float] = []
        self.deepest: list[float] = []
        self._depths: list[tuple[int, int | None]] = []
        self._no_way = self._asked = 0

    def copied(self) -> Coach:
        """Return what goes on from here by itself."""
        other = copy.copy(self)
        other.success, other.drift = list(self.success), list(self.drift)
        other.deepest, other.ways = list(self.deepest), self.ways.copied()
        other._depths, other._no_way, other._asked = [], 0, other.ways.turns
        return other

    def merge(self, other: Coach) -> None:
        """Take the ways that a copy has found."""
        self.ways.merge(other.ways)

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        seen = tuple(self.success), tuple(self.drift), tuple(self.deepest)
        return Progress(len(self.success), self.steps, *seen)

    def require_guide(self, env: Env, task: Task) -> None:
        """Refuse a curriculum that follows a way where nobody shows one.

        Raises:
            NoExpert: the message names the environment.
        """
        if self.guide is not None or callable(getattr(env, "expert", None)):
            return
        if follows_a_way(self.curriculum, self.steps, task):
            raise NoExpert(
                f"the curriculum starts attempts on an expert's way, and {type(env).__name__} has "
                "no expert(): write one, name a frozen --teacher, whose own way it then is, or "
                "take a curriculum that cuts, as tcod_f2b"
            )

    def jobs(self, jobs: Sequence[Job]) -> list[Job]:
        """Return `jobs` with the depth that their tasks have now; attempts of a group share it."""
        depths = {job.task.key: self.curriculum(self.progress, job.task) for job in jobs}
        guided = [job for job in jobs if depths[job.task.key].left is not None]
        ways = self.ways.of(guided)
        return [self._placed(job, depths[job.task.key], ways.get(job.task.key)) for job in jobs]

    def _placed(self, job: Job, depth: Depth, way: Way | None) -> Job:
        if depth.left is not None and way is None:  # nobody knows the way: the task as it is
            self._no_way += 1
            depth, way = Depth(), None
        length = len(way.actions) if way is not None else 0
        start, turns = depth.start(length), depth.limit(length)
        self._depths.append((start, turns))
        job = replace(job, max_turns=turns)
        return job if way is None else ahead(job, way, start)

    def metrics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Return what the curriculum did to the attempts since the last call.

        `depth`, the most turns that an attempt had of its own, where it was limited; `start`, the
        turn at which it began; shares of attempts: `cut` by the curriculum, `prelude_ended` and
        `prelude_diverged` before the agent's first turn, `no_way` for want of an expert's success;
        `expert_share` of all turns; `way_turns` that were played to find ways.
        """
        placed, attempts = self._depths, max(len(self._depths), 1)
        limited = [turns for _, turns in placed if turns is not None]
        turns = [turn for episode in episodes for turn in episode.turns]
        expert = sum(turn.executor == "expert" for turn in turns)
        found = {
            "start": sum(start for start, _ in placed) / attempts,
            "cut": _share(episodes, lambda episode: episode.metrics.get("cut", 0) > 0),
            "prelude_ended": _share(episodes, _dropped),
            "prelude_diverged": _share(episodes, _diverged),
            "no_way": self._no_way / attempts,
            "expert_share": expert / max(len(turns), 1),
            "way_turns": float(self.ways.turns - self._asked),
        }
        if limited:
            found["depth"] = sum(limited) / len(limited)
        self._depths, self._no_way, self._asked = [], 0, self.ways.turns
        return found

    def note(self, metrics: dict[str, float]) -> None:
        """Take the metrics of a step: what later depths may follow from."""
        self.success.append(metrics.get("success", math.nan))
        self.drift.append(metrics.get("teacher_drift", math.nan))
        self.deepest.append(next((metrics[n] for n in DEEPEST if n in metrics), math.nan))

    def save(self, folder: Path) -> None:
        """Write what a resumed run needs. Ways are found again."""
        seen = {"success": self.success, "drift": self.drift, "deepest": self.deepest}
        (folder / "coach.json").write_text(json.dumps(seen))

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        seen = json.loads((folder / "coach.json").read_text())
        self.success, self.drift, self.deepest = (
            seen[name] for name in ("success", "drift", "deepest")
        )


def follows_a_way(curriculum: Curriculum | None, steps: int, task: Task) -> bool:
    """Whether attempts start on somebody's way through the task."""
    return curriculum is not None and curriculum(Progress(0, steps), task).left is not None


def own_attempts(group: Group) -> Group:
    """Return the group without attempts that were over before the agent acted."""
    if not any(map(_dropped, group.episodes)):
        return group
    return replace(group, episodes=tuple(e for e in group.episodes if not _dropped(e)))


def _dropped(episode: Episode) -> bool:
    return episode.outcome.trainable and ended_in_prelude(episode)


def _diverged(episode: Episode) -> bool:
    return episode.metrics.get("prelude_diverged", 0) > 0


def _share(episodes: Sequence[Episode], of: Callable[[Episode], bool]) -> float:
    return sum(map(of, episodes)) / max(len(episodes), 1)
