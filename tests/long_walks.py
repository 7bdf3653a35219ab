"""Walks of six turns, a model that walks them, and runs on them."""

from __future__ import annotations

from functools import partial

import torch
from toy_runs import TINY, config_of
from toys import Walks

from turnwise.trainers.loop import train
from turnwise.trainers.model import tiny_from_env

torch.set_num_threads(1)
LONG = partial(Walks, length=6)


def fresh_long(seed=0):
    return tiny_from_env(LONG, tasks=10, max_len=128, seed=seed, **TINY)


def go(out, method, teacher="", *, env=LONG, **more):
    """Train and return the metrics of each step."""
    more = {"group_size": 2, "teacher": str(teacher), **more}
    return list(train(config_of(out, **more), model=fresh_long(), make_env=env, recipe=method))
