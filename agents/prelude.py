"""What is played before the agent acts: recorded actions, in the agent's own history and tokens.

A curriculum starts an attempt in the middle of a task. The environment is brought there by its
actions, one call after the other under the usual deadlines, and the record holds them as turns of
an expert: it replays like any other, and no loss looks at them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from turnwise.agents.jobs import Job, answer_key
from turnwise.agents.policy import ScriptedPolicy, Seat
from turnwise.agents.renderer import Renderer
from turnwise.envs.types import Episode


class PreludeDiverged(RuntimeError):
    """The environment answered a recorded action otherwise than it did when it was recorded."""

    retryable = False


def prelude_policy(policy: Any, job_of: Callable[[Seat], Job]) -> ScriptedPolicy:
    """Return who plays the preludes, in the tokens of `policy` if it writes any."""

    def recorded(seat: Seat) -> str:
        return job_of(seat).prelude[seat.turn]

    return ScriptedPolicy(recorded, renderer=renderer_of(policy))


def renderer_of(policy: Any) -> Renderer | None:
    """Return the renderer with which `policy`, or the student in it, writes its tokens."""
    while not hasattr(policy, "renderer") and hasattr(policy, "student"):
        policy = policy.student
    return getattr(policy, "renderer", None)


def divergence(job: Job, turn: int, observation: str, state: str) -> str:
    """Return how the answer to turn `turn` of a prelude differs from the record; empty if not."""
    if not job.prelude_answers or answer_key(observation, state) == job.prelude_answers[turn]:
        return ""
    return (
        f"action {turn} of {len(job.prelude)} was answered otherwise when it was recorded; it is "
        f"now answered {observation[:60]!r}: the environment depends on more than the task, the "
        "seed and the actions"
    )


def ended_in_prelude(episode: Episode) -> bool:
    """Return whether the agent never acted because the episode was over before its first turn."""
    played = episode.metrics.get("prelude", 0)
    return 0 < len(episode.turns) <= played
