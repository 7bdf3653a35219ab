"""The attempts of a step: which tasks, how deep, how many rounds. What is played follows from the
step and from what the run has saved, and from nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from turnwise.agents.jobs import Job
from turnwise.agents.policy import Policy
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.agents.watchdog import Watchdog
from turnwise.envs.base import Env
from turnwise.envs.types import Episode, Group, Task
from turnwise.trainers import ranks
from turnwise.trainers.coach import Coach, own_attempts
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.frontier import InFlight, write_tickets
from turnwise.trainers.prompts import Prompts
from turnwise.trainers.recipe import Recipe, every_group

ROUNDS = 4
"""Most batches that a step plays to find groups worth training on."""


class Attempts:
    """Plays the groups of every step of a run.

    Args:
        make_env: returns a new environment.
        env: one of them, for its tasks.
        policy: who acts.
        guide: who shows the ways that a curriculum follows; None is the environment's expert.

    Raises:
        NoExpert: the recipe's curriculum follows a way and nobody shows one.
    """

    def __init__(
        self,
        config: TrainConfig,
        recipe: Recipe,
        make_env: Callable[[], Env],
        env: Env,
        policy: Policy,
        guide: Policy | None = None,
    ) -> None:
        self.config, self.recipe, self.make_env, self.policy = config, recipe, make_env, policy
        self.settings = Settings(
            concurrency=config.tasks_per_step * config.group_size,
            max_turns=config.max_turns,
            max_tokens=config.max_tokens,
            reply_timeout_s=config.reply_timeout_s,
            retries=config.retries,
        )
        self.fast = env.fast
        tasks = env.tasks("train")
        self.prompts = Prompts(tasks, seed=config.seed, replay=config.prompt_replay)
        self.coach: Coach | None = None
        if recipe.curriculum is not None:
            self.coach = Coach(recipe.curriculum, config.steps, make_env, self.settings, guide)
            self.coach.require_guide(env, tasks[0])

    def copied(self) -> Attempts:
        """Return what goes on from here by itself, with the same policy."""
        other = Attempts.__new__(Attempts)
        other.take_over(self)
        other.prompts = self.prompts.copied()
        other.coach = None if self.coach is None else self.coach.copied()
        return other

    def take_over(self, other: Attempts) -> None:
        """Go on from where `other` is, with its very parts; who plays is said elsewhere."""
        self.config, self.recipe, self.make_env = other.config, other.recipe, other.make_env
        self.settings, self.fast = other.settings, other.fast
        self.prompts, self.coach = other.prompts, other.coach

    def of_step(self, step: int) -> list[Group]:
        """Play groups until enough of them are to be trained on: DAPO's dynamic sampling.

        A recipe that keeps every group plays one round. Another plays up to `ROUNDS`, each with
        tasks of its own.
        """
        config = self.config
        rounds = 1 if self.recipe.keep_group is every_group else ROUNDS
        groups: list[Group] = []
        for again in range(rounds):
            first = config.first_task + (step * rounds + again) * config.tasks_per_step
            groups += self._round(first, f"s{step}-" if rounds == 1 else f"s{step}r{again}-")
            if self._enough(groups):
                break
        return groups

    def _enough(self, groups: Sequence[Group]) -> bool:
        """Whether no further round is to be played."""
        keep = self.recipe.keep_group
        kept = sum(bool(g.trainable) and keep(g) for g in map(own_attempts, groups))
        return kept >= self.config.tasks_per_step

    def _round(self, first: int, prefix: str) -> list[Group]:
        """Play one group per task, in the order of the tasks."""
        config = self.config
        indices = self.prompts.choose(first, config.tasks_per_step)
        chosen = [self.prompts.tasks[index] for index in indices]
        jobs = self._placed(
            jobs_for(chosen, config.group_size, run_seed=config.seed, split="train", prefix=prefix)
        )
        groups = grouped(chosen, jobs, self._episodes(jobs))
        self.prompts.note(indices, [own_attempts(group) for group in groups])
        return groups

    def _placed(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Return `jobs` with where they begin and end."""
        return jobs if self.coach is None else self.coach.jobs(jobs)

    def _episodes(self, jobs: Sequence[Job]) -> Iterable[Episode]:
        """Play the attempts of a round."""
        watchdog = Watchdog()
        with watchdog.beside():
            yield from ranks.share_out(
                jobs,
                lambda mine: play(mine, self.make_env, self.policy, self.settings, watchdog),
            )

    def ahead(self, step: int) -> None:
        """Step `step` is about to be learnt from: what may be played meanwhile may start."""

    def metrics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Return what was chosen and how deep it went, since the last call."""
        deep = {} if self.coach is None else self.coach.metrics(episodes)
        return deep | self.prompts.metrics()

    def comparable(self, metrics: dict[str, float]) -> dict[str, float]:
        """Return the metrics that mean the same at every step: alarms compare those.

        Deeper attempts take more turns, and those that begin earlier earn less.
        """
        moved = () if self.coach is None else ("turns", "reward")
        return {name: value for name, value in metrics.items() if name not in moved}

    def note(self, metrics: dict[str, float]) -> None:
        """Take the metrics of a whole step."""
        self.prompts.settle()
        if self.coach is not None:
            self.coach.note(metrics)

    def in_flight(self) -> Sequence[InFlight]:
        """Return the batches that are in flight; all processes call this alike."""
        return ()

    def save(self, folder: Path, in_flight: Sequence[InFlight] = ()) -> None:
        """Write what a resumed run needs, with what `in_flight` gave."""
        self.prompts.save(folder)
        if self.coach is not None:
            self.coach.save(folder)
        write_tickets(folder, in_flight)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        self.prompts.load(folder)
        if self.coach is not None:
            self.coach.load(folder)

    def close(self) -> None:
        """Stop what is still being played. Safe to call twice."""


def grouped(tasks: Sequence[Task], jobs: Sequence[Job], episodes: Iterable[Episode]) -> list[Group]:
    """Return a group per task, in their order, of the episodes that `jobs` became."""
    by_group: dict[str, list[Episode]] = {job.group: [] for job in jobs}
    for episode in episodes:
        by_group[episode.group].append(episode)
    return [
        Group(task=task, episodes=tuple(sorted(tried, key=lambda episode: episode.replica)))
        for task, tried in zip(tasks, by_group.values(), strict=True)
    ]
