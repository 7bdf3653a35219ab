"""Overlap of rollout and training: `python benchmarks/overlap.py [--json]`.

The same run at `pipeline_depth` 0 and 1, by turns in one process: walks whose every step takes
20 ms and tells some twenty tokens, and a random Qwen3 that learns from them, in fp32 on one thread.
At depth 0 the learner waits for the environments and they wait for it; at depth 1 neither does.
Target: 1.3 times faster by the wall. Not a test: seconds depend on the machine and its load; read
the ratio.
"""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from table import show

from turnwise.envs.base import Response, TextEnv
from turnwise.envs.types import Task
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.loop import train
from turnwise.trainers.model import tiny_from_env

PACE_S, TURNS, STEPS, WARM = 0.02, 32, 8, 2
VIEW = "a hill and a river and a tree and a house and a mill and a road"


@dataclass(frozen=True, kw_only=True)
class Walk(Task):
    """One walk."""

    index: int


class SlowWalk(TextEnv):
    """Pays for actions that begin with a vowel; every step takes `PACE_S`."""

    Task: ClassVar[type[Task]] = Walk

    def tasks(self, split: str) -> Sequence[Walk]:
        """Return a thousand walks."""
        return [Walk(index=i) for i in range(1000)]

    def setup(self, task: Task, rng: random.Random) -> str:
        """Name the walk."""
        self.name = f"{rng.randrange(100)}"
        return f"walk {self.name}"

    def respond(self, action: str) -> Response:
        """Take a step, slowly."""
        time.sleep(PACE_S)
        right = action[:1] in "aeiou"
        told = f"{self.name} is at mile {self.turn} and sees {VIEW}"
        return Response(told, reward=float(right), terminated=self.turn == TURNS)

    def expert(self) -> str:
        """Return an action."""
        return "a step"


def seconds_of(depth: int) -> list[float]:
    """Wall seconds of each step after the first few."""
    shape = {"hidden": 128, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 32, "ffn": 384}
    model = tiny_from_env(SlowWalk, tasks=10, max_len=2048, **shape)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            out=Path(folder) / "run",
            steps=STEPS,
            tasks_per_step=2,
            group_size=2,
            max_new_tokens=2,
            max_tokens=2048,
            checkpoint_every=0,
            pipeline_depth=depth,
        )
        rows = train(config, model=model, make_env=SlowWalk)
        ends = [time.perf_counter() for _ in rows]
    return [b - a for a, b in itertools.pairwise(ends)][WARM:]


def main() -> None:
    """Run both in one process, one after the other, twice."""
    torch.set_num_threads(1)
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for depth in (0, 1, 1, 0):  # so that a load that grows or falls harms both alike
        seconds[depth] += seconds_of(depth)
    medians = {depth: statistics.median(some) for depth, some in seconds.items()}
    show(
        f"{TURNS} turns, {1000 * PACE_S:.0f} ms per step of an environment, 4 episodes per batch",
        [
            {"pipeline_depth": depth, "s per step": f"{medians[depth]:.3f}", "steps": len(some)}
            for depth, some in seconds.items()
        ],
        ratio=round(medians[0] / medians[1], 2),
        target=1.3,
    )


if __name__ == "__main__":
    main()
