"""The rounds of imitation: play with a teacher, keep what it says, learn from what is kept.

One step of a run is one round. What a resumed run has kept it reads from the record of episodes.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from turnwise.agents.engines.base import Engine
from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.executors import RollIn
from turnwise.agents.labels import CUT, FAILED, Labelling, Teacher, play_labelled
from turnwise.agents.policy import expert
from turnwise.agents.record import read_records
from turnwise.agents.rollout import Settings, jobs_for
from turnwise.agents.teachers import LLMTeacher, TextTeacher
from turnwise.envs.base import Env
from turnwise.envs.formats.hermes import HERMES
from turnwise.envs.seeds import derive
from turnwise.envs.types import Episode, Group
from turnwise.trainers import ranks
from turnwise.trainers.addresses import is_address, is_black_box, is_served
from turnwise.trainers.batch import rows_of
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.dagger import Lessons, lessons
from turnwise.trainers.engines import served
from turnwise.trainers.guides import acting
from turnwise.trainers.imitation import Imitation
from turnwise.trainers.mixes import Progress
from turnwise.trainers.model_teacher import ModelTeacher
from turnwise.trainers.recipe import Recipe, every_group
from turnwise.trainers.run_folder import RunFolder
from turnwise.trainers.shared_folder import SharedFolder
from turnwise.trainers.trainee import Trainee
from turnwise.trainers.turns import turn_table
from turnwise.trainers.tutor import NoTeacher, Tutor, in_this_process
from turnwise.trainers.watch import (
    TooManyLost,
    env_steps,
    mean_of,
    require_enough,
    rollout_metrics,
)
from turnwise.trainers.watch_labels import said_in

AT_ONCE = 32
"""Questions that a black box is asked at once, at most."""


class TeacherFailed(TooManyLost):
    """The teacher failed, or was cut, at more of its labels than `max_failed` allows."""


class Rounds:
    """Plays and learns the rounds of one run.

    Args:
        trainee: who learns.
        env: an environment, for its tasks and to see whether it has an expert.
        tutor: of a recipe that distils, too.

    Raises:
        NoTeacher: the run names no model, and the environment has no expert.
        ValueError: the recipe or the config names a piece that rounds do not use.
        TeacherMismatch, ModelNotFound: see `turnwise.trainers.tutor.tutor_for`.
    """

    def __init__(
        self,
        config: TrainConfig,
        trainee: Trainee,
        make_env: Callable[[], Env],
        env: Env,
        recipe: Recipe,
        how: Imitation,
        tutor: Tutor | None,
    ) -> None:
        _require_no_unused(config, recipe)
        self.config, self.trainee, self.make_env = config, trainee, make_env
        self.tasks, self.recipe, self.how, self.tutor = env.tasks("train"), recipe, how, tutor
        self.server: Engine | None = None
        self.scorer = self._scorer()
        self.teacher = self._teacher(env)
        self.played: list[list[Episode]] = []

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        trainee: Trainee,
        make_env: Callable[[], Env],
        env: Env,
        recipe: Recipe,
        tutor: Tutor | None,
    ) -> Rounds | None:
        """Return the rounds of a recipe that imitates, or None."""
        if recipe.imitation is None:
            return None
        return cls(config, trainee, make_env, env, recipe, recipe.imitation, tutor)

    def _scorer(self) -> ModelTeacher | None:
        """Return the model that the run names, if it names one."""
        if self.tutor is not None and isinstance(self.tutor.teacher, ModelTeacher):
            return self.tutor.teacher
        named = self.config.teacher
        if not named or is_served(named):
            return None
        learner, tokenizer = self.trainee.learner, self.trainee.tokenizer
        return in_this_process(named, learner, tokenizer, self.config.max_tokens)

    def _teacher(self, env: Env) -> Teacher:
        if self.how.direct is not None and self.scorer is None:
            raise NoTeacher(
                f"recipe {self.recipe.name!r} learns from a teacher's distributions, and "
                f"{self._without_distributions()} gives none: name a model with --teacher FOLDER, "
                "or leave its direct loss out"
            )
        if self.how.teacher is not None:
            return self.how.teacher(self.trainee.renderer)
        if self.scorer is not None:
            slots = self.config.tasks_per_step * self.config.group_size
            model, most = self.scorer.model, self.config.max_tokens
            return self._acting(EmbeddedEngine(model, slots=slots, max_len=most))
        if is_address(self.config.teacher):
            most, tokenizer = self.config.max_tokens, self.trainee.tokenizer
            near, late = self.config.engine_tolerance, self.config.reply_timeout_s
            self.server = served(self.config.teacher, tokenizer, most, near, late)
            return self._acting(self.server)
        if is_black_box(self.config.teacher):
            return self._black_box(env)
        if not callable(getattr(env, "expert", None)):
            raise NoTeacher(
                f"recipe {self.recipe.name!r} needs a teacher, and {type(env).__name__} has no "
                "expert(): name a model with --teacher FOLDER"
            )
        return TextTeacher(expert, renderer=self.trainee.renderer)

    def _without_distributions(self) -> str:
        return "a server" if self.config.teacher else "the environment's expert"

    def _black_box(self, env: Env) -> Teacher:
        """Return the teacher behind a server that answers in text alone."""
        from turnwise.agents.openai_agent import chat_named, text_of

        config = self.config
        chat = chat_named(
            config.teacher,
            temperature=self.how.temperature,
            max_new_tokens=config.max_new_tokens,
            deadline_s=config.reply_timeout_s,
        )
        return TextTeacher(
            text_of(chat, getattr(env, "format", None) or HERMES),
            renderer=self.trainee.renderer,
            executor="teacher",
            workers=min(AT_ONCE, config.tasks_per_step * config.group_size),
            timeout_s=config.reply_timeout_s,
        )

    def _acting(self, engine: Engine) -> Teacher:
        """Return the teacher that plays an engine's model."""
        return LLMTeacher(acting(engine, self.trainee.renderer, self.config, self.how.temperature))

    def close(self) -> None:
        """Close the connections to a teacher on a server."""
        getattr(self.server, "close", lambda: None)()

    def comparable(self, metrics: dict[str, float]) -> dict[str, float]:
        """Return the metrics that mean the same in every round: how often the teacher acts moves
        all of the others."""
        return {name: metrics[name] for name in ("length_cut",) if name in metrics}

    def resume(self, folder: Path, done: int) -> None:
        """Read the rounds that were played before from a run's folder."""
        self.played = [[] for _ in range(done)]
        for row in read_records(folder / "episodes.jsonl"):
            self.played[int(row.episode.group[1:].split("-")[0])].append(row.episode)

    def step(self, step: int, folder: RunFolder | SharedFolder) -> dict[str, Any]:
        """Play a round, record it, learn from what is kept."""
        start = time.process_time()
        roll_in = self.how.roll_in(Progress(step, self.config.steps))
        groups = self._play(step, roll_in)
        episodes = [episode for group in groups for episode in group.episodes]
        between = time.process_time()
        folder.records.extend(episodes)
        require_enough(episodes, self.config.max_failed, self.config.max_tokens)
        self._require_answers(episodes)
        self.trainee.sampler.rest()
        self.played.append(episodes)
        metrics = rollout_metrics(episodes) | said_in(episodes, roll_in)
        metrics |= self._learn(step, groups)
        if self.tutor is not None:
            self.tutor.note(metrics)
        seconds = {"rollout_cpu_s": between - start, "update_cpu_s": time.process_time() - between}
        updates = self.trainee.learner.updates
        metrics["env_steps"] = env_steps(episodes)
        return metrics | seconds | {"step": step + 1, "policy_version": updates}

    def publish(self) -> None:
        """Tell the engines that the weights have changed; a teacher's may follow the student's."""
        self.trainee.publish()
        if isinstance(self.teacher, LLMTeacher) and self.server is None:
            self.teacher.policy.engine.update_weights(None, self.trainee.learner.updates)

    def _play(self, step: int, roll_in: RollIn) -> list[Group]:
        config, n = self.config, self.config.tasks_per_step
        chosen = [
            self.tasks[(config.first_task + step * n + i) % len(self.tasks)] for i in range(n)
        ]
        jobs = jobs_for(
            chosen, config.group_size, run_seed=config.seed, split="train", prefix=f"s{step}-"
        )
        settings = Settings(
            concurrency=len(jobs),
            max_turns=config.max_turns,
            max_tokens=config.max_tokens,
            # A black box keeps time itself, and does not count how long a question waits.
            reply_timeout_s=math.inf if is_black_box(config.teacher) else config.reply_timeout_s,
        )
        policy = Labelling(self.trainee.policy, self.teacher, roll_in, self.how.wanted)
        by_group: dict[str, list[Episode]] = {job.group: [] for job in jobs}
        episodes = ranks.share_out(
            jobs, lambda mine: play_labelled(mine, self.make_env, policy, settings)
        )
        for episode in episodes:
            by_group[episode.group].append(episode)
        return [
            Group(task=task, episodes=tuple(sorted(some, key=lambda episode: episode.replica)))
            for task, some in zip(chosen, by_group.values(), strict=True)
        ]

    def _require_answers(self, episodes: Sequence[Episode]) -> None:
        """Refuse to learn from what is left where the teacher failed, or was cut, too often.

        The few answers of a cut teacher that do end are no sample of what it would do. A teacher
        whose tokens are not seen (`openai:`) does not say that it was cut.
        """
        asked = [t.label_error for e in episodes for t in e.turns if t.label_ids or t.label_error]
        failed = Counter(error for error in asked if error.startswith(FAILED))
        cut = Counter(error for error in asked if error == CUT)
        most, whole = self.config.max_new_tokens, self.config.max_tokens
        longer = f"; raise max_new_tokens ({most}) or max_tokens ({whole}), with another --out"
        for what, lost, more in (("failed at", failed, ""), ("was cut at", cut, longer)):
            if lost.total() > self.config.max_failed * len(asked):
                reasons = "; ".join(f"{n}x {why}" for why, n in lost.most_common(3))
                raise TeacherFailed(
                    f"the teacher {what} {lost.total()} of {len(asked)} labels, more than "
                    f"max_failed {self.config.max_failed:g} allows: {reasons}{more}"
                )

    def _learn(self, step: int, groups: Sequence[Group]) -> dict[str, float]:
        """Take the optimizer steps of a round."""
        pool = self._pool(step)
        if self.recipe.learns_by_doing:
            metrics = self._with_own_actions(pool, step, groups)
        else:
            metrics = [self._imitate(pool, some) for some in self._batches(pool, step)]
        return {"lessons": float(pool.labels), **mean_of(metrics)}

    def _pool(self, step: int) -> Lessons:
        how, seed = self.how, derive(self.config.seed, "lessons", step)
        return lessons(how.kept(self.played), distinct=how.distinct, cap=how.cap, seed=seed)

    def _imitate(self, pool: Lessons, some: Sequence[int]) -> dict[str, float]:
        return self.trainee.learner.imitate(
            pool.rows(some),
            aggregate=self.recipe.aggregate,
            direct=self.how.direct,
            teacher=self.scorer,
            totals=pool.denominators(some),
        )

    def _with_own_actions(
        self, pool: Lessons, step: int, groups: Sequence[Group]
    ) -> list[dict[str, float]]:
        """Learn from labels and, in the same updates, from what the student did."""
        learner, tutor = self.trainee.learner, self.tutor
        table = turn_table([g for g in groups if g.trainable], history=self.recipe.history)
        advantages = self.recipe.credit(table)
        rows = rows_of(pool.episodes)
        said: dict[str, float] = {}
        if tutor is not None:
            rows, said = tutor.teach(rows, advantages, table, pool.episodes, learner)
        teacher = None if tutor is None else tutor.teacher
        metrics = []
        for some in self._batches(pool, step, np.arange(len(pool))):
            mine = [row for row in rows if row.traj in some]
            shown = pool.rows(some)
            metrics.append(said | learner.improve(mine, advantages, self.recipe, teacher, shown))
            if teacher is not None:
                teacher.after_update(learner.model, learner.updates)
        return metrics

    def _batches(
        self, pool: Lessons, step: int, useful: np.ndarray | None = None
    ) -> Iterator[list[int]]:
        """Yield the episodes of each update: all are used once before any is used again.

        Args:
            useful: indices to draw from; None takes the episodes that hold a label.
        """
        rng = np.random.default_rng([self.config.seed, step])
        if useful is None:
            useful = np.array([i for i, some in enumerate(pool.weights) if some], np.int64)
        order = np.array([], np.int64)
        for _ in range(self.config.updates_per_step if len(useful) else 0):
            size = min(self.how.batch, len(useful))
            if len(order) < size:
                order = np.concatenate([order, rng.permutation(useful)])
            yield sorted(set(order[:size].tolist()))
            order = order[size:]


def _require_no_unused(config: TrainConfig, recipe: Recipe) -> None:
    """Refuse what a round of imitation has no use for, rather than leave it out unsaid."""
    unused = {
        "curriculum": recipe.curriculum is not None,
        "keep_group": recipe.keep_group is not every_group,
        "prompt_replay": config.prompt_replay > 0,
        "correct_mismatch": config.correct_mismatch,
    }
    if named := [name for name, is_set in unused.items() if is_set]:
        raise ValueError(
            f"recipe {recipe.name!r} imitates, and its rounds do not use {' and '.join(named)}: "
            "leave that out, or take a recipe without imitation"
        )
