"""What is to be played: one job per attempt, its seeds a function of the run and its name alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from turnwise.envs.seeds import derive
from turnwise.envs.types import Task, digest


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt to be played. Its seeds follow from the run's seed and its name alone.

    Raises:
        ValueError: it leaves the agent no turn, or the prelude's answers are not as many.
    """

    task: Task
    group: str
    replica: int
    env_seed: int
    policy_seed: int
    prelude: tuple[str, ...] = ()
    """Actions that are played before the agent acts. They stand in its history and in its record,
    as an expert's: nothing is learnt from them."""
    prelude_answers: tuple[str, ...] = ()
    """`answer_key` of what the environment answered to each of them when they were recorded;
    empty compares nothing."""
    max_turns: int | None = None
    """The agent's own turns, at most, those of the prelude not counted; None leaves it to
    `Settings` and the environment. Whoever is cut by it has `cut` in its episode's metrics."""

    def __post_init__(self) -> None:
        if self.max_turns is not None and self.max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {self.max_turns}")
        if self.prelude_answers and len(self.prelude_answers) != len(self.prelude):
            raise ValueError(
                f"a prelude of {len(self.prelude)} actions has as many answers or none, "
                f"got {len(self.prelude_answers)}"
            )

    @property
    def id(self) -> str:
        """Unique in a run."""
        return f"{self.group}.{self.replica}"


def answer_key(observation: str, state: str) -> str:
    """Return 16 hex digits of what an environment answered and the state that it was in then."""
    return digest([observation, state])


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
