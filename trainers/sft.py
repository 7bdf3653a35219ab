"""Supervised fine-tuning on demonstrations: cross-entropy on what the expert did, nothing else.

    L = -1/M sum_j log pi(a_j | history)        over the M tokens of expert turns

Demonstrations are recorded episodes with the tokens of the student's own tokenizer. Turns that
somebody else took (a stumble before a recovery) stay in the history and out of the loss.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from turnwise.agents.policy import (
    MixturePolicy,
    ScriptedPolicy,
    Seat,
    bernoulli,
    random_tool,
)
from turnwise.agents.renderer import Renderer
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.envs.base import Env
from turnwise.envs.seeds import derive
from turnwise.envs.types import Episode, Task
from turnwise.trainers.batch import rows_of, taught
from turnwise.trainers.experts import NoDemonstrations, demonstrate
from turnwise.trainers.learner import Learner


def stumble(seat: Seat, malformed: float) -> str:
    """Do what a beginner does wrong: a random call, or now and then words that call nothing."""
    rng = random.Random(derive(seat.seed, "stumble", seat.turn))
    if rng.random() >= malformed:
        return random_tool(seat)
    words = [word for message in seat.messages for word in message["content"].split()]
    return " ".join(rng.choices(words, k=rng.randint(1, 3)))


def demonstrations(
    make_env: Callable[[], Env], tasks: Sequence[Task], renderer: Renderer, **how: Any
) -> list[Episode]:
    """Return solved expert episodes, in the order of `tasks`; `how` is that of `expert_episodes`.

    Raises:
        ExpertFailed: the expert raised something.
    """
    return [e for e in expert_episodes(make_env, tasks, renderer, **how) if e.success]


def expert_episodes(
    make_env: Callable[[], Env],
    tasks: Sequence[Task],
    renderer: Renderer,
    *,
    seed: int,
    noise: float = 0.05,
    malformed: float = 0.3,
    settings: Settings | None = None,
    watch: Callable[[int], object] = lambda played: None,
) -> list[Episode]:
    """Return the expert's episodes, solved, cut or lost, in the order of `tasks`.

    Args:
        noise: probability per turn of a `stumble` instead, from which the expert then recovers;
            those turns are not taught.
        malformed: share of the stumbles that are words which call nothing.
        watch: hears after each episode how many are over.

    Raises:
        ExpertFailed: the expert raised something.
    """
    clumsy = partial(stumble, malformed=malformed)
    policy = MixturePolicy(
        student=ScriptedPolicy(clumsy, renderer=renderer, executor="student"),
        teacher=ScriptedPolicy(demonstrate, renderer=renderer),
        teaches=bernoulli(1 - noise),
    )
    jobs = jobs_for(tasks, run_seed=seed, split="train", prefix="demo-")
    order = {job.id: i for i, job in enumerate(jobs)}
    episodes = list[Episode]()
    for episode in play(jobs, make_env, policy, settings):
        episodes.append(episode)
        watch(len(episodes))
    return sorted(episodes, key=lambda e: order[e.id])


def imitate(
    learner: Learner,
    episodes: Sequence[Episode],
    *,
    steps: int,
    batch: int,
    seed: int,
    enough: Callable[[int], bool] = lambda step: False,
) -> Iterator[dict[str, float]]:
    """Take up to `steps` steps and yield the metrics of each.

    Args:
        batch: episodes per step; every episode is used once before any is used again.
        enough: asked after each step with the number of steps taken; True ends the training. Small
            models learn to copy suddenly, so stop on a measured success, not on a step count.

    Raises:
        NoDemonstrations: there is nothing to imitate.
    """
    if not episodes:
        raise NoDemonstrations("there are no demonstrations to imitate: no episode is given")
    rng, order = np.random.default_rng(seed), np.array([], np.int64)
    for step in range(steps):
        if len(order) < batch:
            order = np.concatenate([order, rng.permutation(len(episodes))])
        chosen, order = order[:batch], order[batch:]
        rows = rows_of((episodes[i] for i in chosen), taught)
        yield learner.imitate(rows) | {"step": step + 1}
        if enough(step + 1):
            return
