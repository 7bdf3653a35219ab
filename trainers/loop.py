"""On-policy training in one readable body: rollout, credit, collate, objective, step, publish.

Every random choice follows from the config's seed and the step, so a run that is killed and resumed
plays and learns exactly what it would have.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from torch import nn

from turnwise.agents.record import RecordError
from turnwise.envs.base import Env
from turnwise.envs.registry import make
from turnwise.envs.types import Episode, Group
from turnwise.trainers import ranks
from turnwise.trainers.attempts import Attempts
from turnwise.trainers.batch import rows_of
from turnwise.trainers.coach import own_attempts
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.dagger_loop import Rounds
from turnwise.trainers.engines import NotAsleep, WeightsNotTaken
from turnwise.trainers.guides import guide_for
from turnwise.trainers.interrupt import Interrupt
from turnwise.trainers.learner import TrainingDiverged
from turnwise.trainers.model import load_model, save_model
from turnwise.trainers.off_policy import for_depth, staleness
from turnwise.trainers.pacing import paced
from turnwise.trainers.ray_cluster import ClusterLost
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.recipes import recipe as recipe_named
from turnwise.trainers.run_folder import RunFolder, reading, refuse_used
from turnwise.trainers.shared_folder import SharedFolder, open_folder
from turnwise.trainers.trainee import Trainee
from turnwise.trainers.turns import turn_table
from turnwise.trainers.tutor import Tutor, require_used, tutor_for
from turnwise.trainers.watch import (
    Alarms,
    TooManyLost,
    env_steps,
    mean_of,
    require_enough,
    rollout_metrics,
)

TEACHES = 1e-6
"""Advantages below this are the rounding of a group that earned the same."""
P = TypeVar("P", bound="Closes | None")
RESUMABLE = (TooManyLost, NotAsleep, TrainingDiverged, RecordError, ClusterLost, WeightsNotTaken)
"""What ends a run between two steps: the last whole step is saved first."""


class Closes(Protocol):
    """A part of a run that gives something back in the end."""

    def close(self) -> None:
        """Give it back."""


def train(
    config: TrainConfig,
    *,
    model: tuple[nn.Module, Any] | None = None,
    make_env: Callable[[], Env] | None = None,
    recipe: Recipe | None = None,
) -> Iterator[dict[str, float]]:
    """Train and yield the metrics of each step; the run folder gets everything else.

    Args:
        config: what to do.
        model: a model and tokenizer in memory; None loads `config.model`.
        make_env: None makes `config.env`.
        recipe: None takes `config.recipe` by name.

    Raises:
        UnknownEnv, UnknownRecipe, ModelNotFound, TokenizerMismatch, RunFolderError, OnPolicyOnly:
            before anything is played; the message says what to do.
        MissingExtra: `ray` is set and Ray is not installed.
        TooManyLost, TrainingDiverged, ClusterLost, WeightsNotTaken, NotAsleep: in mid-run, after a
            checkpoint.
        EngineError: a teacher's server failed amid a step; go on from the checkpoint before.
        RankFailed, RankLost: of several processes another one failed, or is gone.
    """
    ranks.join(config.processes, config.rank_timeout_s)
    recipe = config.adapted(recipe or recipe_named(config.recipe, **config.options_of_recipe()))
    recipe = for_depth(recipe, config.pipeline_depth)
    make_env = make_env or partial(make, config.env, **config.environment_arguments())
    run = _Run(config, recipe, make_env, model)
    with Interrupt() as interrupt, ranks.named(), closing(run):
        yield from _steps(run, interrupt)


def _steps(run: _Run, interrupt: Interrupt) -> Iterator[dict[str, float]]:
    """Go through the steps that are left, and save where they end."""
    config, folder, trainee = run.config, run.folder, run.trainee
    done = run.resume()
    try:
        for step in range(done, config.steps):
            metrics = run.step(step)
            done = step + 1
            if config.checkpoint_every and done % config.checkpoint_every == 0:
                folder.checkpoint(done, run.save)
            yield metrics
            if ranks.anywhere(interrupt.requested):
                break
            if done < config.steps:
                run.publish()
        folder.checkpoint(done, run.save)
        ranks.on_main(lambda: save_model(trainee.model, trainee.tokenizer, config.out / "model"))
    except RESUMABLE:
        folder.checkpoint(done, run.save)
        raise


class _Run:
    """What a run is made of, and what is saved of it and closed in the end.

    If a part of it is refused, those before it are closed.
    """

    folder: RunFolder | SharedFolder

    def __init__(
        self,
        config: TrainConfig,
        recipe: Recipe,
        make_env: Callable[[], Env],
        model: tuple[nn.Module, Any] | None,
    ) -> None:
        self.config, self.recipe, self.alarms = config, recipe, Alarms()
        with ExitStack() as parts:
            self._make(make_env, model, parts)
            self.parts = parts.pop_all()

    def _make(
        self,
        make_env: Callable[[], Env],
        model: tuple[nn.Module, Any] | None,
        parts: ExitStack,
    ) -> None:
        config, recipe = self.config, self.recipe
        require_used(recipe, config.teacher)
        # Before a server is given weights.
        ranks.on_main(lambda: refuse_used(config.out, config.to_json(), resume=config.resume))
        env = parts.enter_context(closing(make_env()))
        if not len(env.tasks("train")):
            raise ValueError(
                f"{config.env} has no tasks in its split 'train': there is nothing to do"
            )
        self.trainee = trainee = Trainee.of(*(model or load_model(config.model)), config)
        parts.callback(trainee.sampler.close)
        if recipe.needs_reference:
            trainee.learner.keep_reference()
        self.tutor = _closed_with(parts, _tutor(config, recipe, trainee))
        teacher = None if self.tutor is None else self.tutor.teacher
        guide = guide_for(config, recipe, env, trainee, teacher, parts)
        attempts = Attempts(config, recipe, make_env, env, trainee.policy, guide)
        self.attempts = _closed_with(parts, paced(attempts, trainee))
        self.rounds = _closed_with(
            parts, Rounds.of(config, trainee, make_env, env, recipe, self.tutor)
        )
        self.folder = open_folder(config.out, config.to_json(), resume=config.resume)
        parts.callback(self.folder.close)

    def resume(self) -> int:
        """Be as the folder's checkpoint says, if it has one; return how many steps are done."""
        saved = self.folder.resumed
        if saved is None:
            return 0
        with reading(saved), ranks.named():
            self._load(saved)
            done = int(self.folder.state["step"])
        if self.rounds is not None:
            self.rounds.resume(self.config.out, done)
        self.publish()
        return done

    def _load(self, saved: Path) -> None:
        self.trainee.learner.load(saved)
        self.alarms.load_state_dict(json.loads((saved / "alarms.json").read_text()))
        self.attempts.load(saved)
        if self.tutor is not None:
            self.tutor.load(saved)

    def save(self, place: Path) -> None:
        """Write a checkpoint."""
        in_flight = self.attempts.in_flight()  # all ranks talk; then rank 0 alone may fail
        self.trainee.learner.save(place)
        if not ranks.is_main():
            return
        (place / "alarms.json").write_text(json.dumps(self.alarms.state_dict()))
        self.attempts.save(place, in_flight)
        if self.tutor is not None:
            self.tutor.save(place)

    def step(self, step: int) -> dict[str, Any]:
        """Play and learn once, and log what is to be said of it."""
        if self.rounds is not None:
            metrics = self.rounds.step(step, self.folder)
        else:
            metrics = _step(self, step)
        warnings = self.alarms.check((self.rounds or self.attempts).comparable(metrics))
        metrics |= {"alarms": warnings} if warnings else {}
        self.folder.log(metrics)
        return metrics

    def publish(self) -> None:
        """Play with the new weights. The step before is over, whatever becomes of this."""
        (self.rounds or self.trainee).publish()

    def close(self) -> None:
        """Close files, environments and connections."""
        self.parts.close()


def _closed_with(parts: ExitStack, part: P) -> P:
    """Return `part`, which is closed with the others if it is not None."""
    if part is not None:
        parts.callback(part.close)
    return part


def _tutor(config: TrainConfig, recipe: Recipe, trainee: Trainee) -> Tutor | None:
    return tutor_for(
        recipe,
        trainee.learner,
        trainee.tokenizer,
        trainee.renderer,
        teacher=config.teacher,
        steps=config.steps,
        tolerance=config.engine_tolerance,
        temperature=config.temperature,
        deadline_s=config.reply_timeout_s,
    )


def _step(run: _Run, step: int) -> dict[str, Any]:
    """Rollout, credit, update: one batch of groups, and what is to be said of it."""
    config, trainee, attempts, tutor = run.config, run.trainee, run.attempts, run.tutor
    start = time.process_time()
    groups = attempts.of_step(step)
    played = time.process_time()
    episodes = _episodes(groups)
    run.folder.records.extend(episodes)
    require_enough(episodes, config.max_failed, config.max_tokens)
    attempts.ahead(step)
    trainee.sampler.rest()
    groups = [own_attempts(group) for group in groups]
    metrics = rollout_metrics(_episodes(groups)) | attempts.metrics(episodes)
    metrics |= _update(config, trainee, groups, run.recipe, tutor)
    attempts.note(metrics)
    if tutor is not None:
        tutor.note(metrics)
    seconds = {"rollout_cpu_s": played - start, "update_cpu_s": time.process_time() - played}
    metrics["env_steps"] = env_steps(episodes)
    return metrics | seconds | {"step": step + 1, "policy_version": trainee.learner.updates}


def _episodes(groups: Sequence[Group]) -> list[Episode]:
    return [episode for group in groups for episode in group.episodes]


def _update(
    config: TrainConfig,
    trainee: Trainee,
    groups: Sequence[Group],
    recipe: Recipe,
    tutor: Tutor | None,
) -> dict[str, float]:
    """Give credit and take the optimizer steps of one batch."""
    tied = sum(len({e.reward for e in group.trainable}) < 2 for group in groups)
    kept = [g for g in groups if g.trainable and recipe.keep_group(g)][: config.tasks_per_step]
    share = {"tied_groups": tied / len(groups), "kept_groups": float(len(kept))}
    if not kept:
        return share | {"idle_groups": 1.0}
    table = turn_table(kept, history=recipe.history)
    advantages = recipe.credit(table)
    paid = np.unique(table.group_N[abs(advantages) > TEACHES])
    teach = len(paid if tutor is None else kept)
    share["idle_groups"] = 1 - teach / len(groups)
    episodes = [episode for group in kept for episode in group.trainable]
    rows = rows_of(episodes)
    if tutor is not None:
        rows, said = tutor.teach(rows, advantages, table, episodes, trainee.learner)
        share |= said
    if config.pipeline_depth:
        share |= staleness(rows, trainee.learner.updates)
    if config.correct_mismatch or config.pipeline_depth:
        rows = trainee.learner.with_proximal(rows)
    sizes = np.cumsum([0, *(len(group.trainable) for group in kept)])
    metrics: list[dict[str, float]] = []
    for part in np.array_split(np.arange(len(kept)), min(config.updates_per_step, len(kept))):
        low, high = sizes[part[0]], sizes[part[-1] + 1]
        some = [row for row in rows if low <= row.traj < high]
        teacher = None if tutor is None else tutor.teacher
        metrics.append(trainee.learner.improve(some, advantages, recipe, teacher))
        if teacher is not None:
            teacher.after_update(trainee.learner.model, trainee.learner.updates)
    gap = {"engine_gap": metrics[0].get("max_gap", 0.0)}
    return share | gap | mean_of(metrics)
