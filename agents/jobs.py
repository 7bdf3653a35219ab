"""What is to be played: one job per attempt, its seeds a function of the run and its name alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from turnwise.envs.seeds import derive
from turnwise.envs.types import Task


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt to be played. Its seeds follow from the run's seed and its name alone."""

    task: Task
    group: str
    replica: int
    env_seed: int
    policy_seed: int

    @property
    def id(self) -> str:
        """Unique in a run."""
        return f"{self.group}.{self.replica}"


def jobs_for(
    tasks: Iterable[Task], replicas: int = 1, *, run_seed: int, split: str, prefix: str = ""
) -> list[Job]:
    """Return `replicas` jobs per task; the attempts at a task start from the same state.

    Args:
        prefix: put before the group's name, to keep the steps of a run apart.
    """
    return [
        Job(
            task,
            f"{prefix}{index}",
            replica,
            derive(run_seed, "env", split, task.key),
            derive(run_seed, "policy", prefix, split, task.key, index, replica),
        )
        for index, task in enumerate(tasks)
        for replica in range(replicas)
    ]
