"""Short training runs on toys, and what is left of one whatever machine made it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from toys import Walks

from turnwise.agents.record import read_records
from turnwise.envs.types import canonical_json
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.loop import train
from turnwise.trainers.model import (
    load_model,
    tiny_from_env,
)

torch.set_num_threads(1)

TINY = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "ffn": 64}
TIMES = ("wall_s", "env_s", "policy_s", "rollout_cpu_s", "update_cpu_s")


def fresh(env=Walks):
    return tiny_from_env(env, tasks=10, max_len=128, **TINY)


def config_of(out, **more) -> TrainConfig:
    usual = {"tasks_per_step": 3, "group_size": 4, "max_new_tokens": 3, "max_tokens": 96}
    usual |= {"learning_rate": 1e-2, "warmup_steps": 1, "checkpoint_every": 2, "steps": 6}
    return TrainConfig(out=Path(out), **{**usual, **more})


def run(out, *, env=Walks, method=None, model=None, **more):
    """Train to the end and return the metrics of each step."""
    config = config_of(out, **more)
    return list(train(config, model=model or fresh(), make_env=env, recipe=method))


def weights(out) -> dict[str, torch.Tensor]:
    model, _ = load_model(str(Path(out) / "model"))
    return dict(model.named_parameters())


def same_weights(a, b) -> bool:
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_times(value):
    """A record or a metrics row as it would be on any machine."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in (*TIMES, "chain")}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def history(out) -> list[str]:
    """Every episode and every row of metrics, in the order in which they were written."""
    out = Path(out)
    episodes = [dict(found.raw) for found in read_records(out / "episodes.jsonl")]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [canonical_json(without_times(x)) for x in (*episodes, *rows)]


def episodes_of(out):
    return [found.episode for found in read_records(Path(out) / "episodes.jsonl")]


def schedule(out) -> list[tuple[str, int, int]]:
    """Every episode with its seed and the version of the weights that sampled it."""
    return [(e.id, e.policy_seed, e.turns[0].policy_version) for e in episodes_of(out)]
