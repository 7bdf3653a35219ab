"""One frozen dataclass says what a training run is; the run folder keeps it as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A run of on-policy training. The defaults run on a laptop's CPU."""

    env: str = "turnwise/FileHunt-v1"
    """Registered id, or `module:Class`."""
    env_kwargs: str = "{}"
    """JSON object passed to the environment, as '{"depth": [2, 6]}'."""
    model: str = ""
    """Folder or Hugging Face name of a causal model with a chat template."""
    recipe: str = "turn_rloo"
    """A name that `turnwise recipes` lists."""
    steps: int = 100
    """Batches of episodes."""
    tasks_per_step: int = 16
    group_size: int = 8
    """Attempts per task; they are each other's baseline."""
    updates_per_step: int = 2
    """Optimizer steps per batch; the second one is off-policy by the first."""
    learning_rate: float = 5e-4
    warmup_steps: int = 5
    decay_from: float = 1.0
    """Share of the steps after which the learning rate falls linearly to a tenth."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    max_new_tokens: int = 64
    """Per action."""
    max_tokens: int = 1024
    """Longest segment, context and actions together."""
    max_turns: int | None = None
    """A cap below the environment's own."""
    micro_tokens: int = 8192
    """Tokens per forward pass of an update."""
    lora_rank: int = 0
    """Train low-rank adapters instead of all weights; 0 trains all."""
    seed: int = 0
    first_task: int = 0
    """Index of the first training task; stages of one pipeline should not share tasks."""
    out: Path = field(default_factory=lambda: Path("runs/train"))
    """Run folder: config, metrics, records, checkpoints, the final model."""
    resume: bool = False
    """Go on from the newest checkpoint in `out`."""
    checkpoint_every: int = 25
    """Steps; 0 saves only at the end."""
    max_failed: float = 0.5
    """Stop when a larger share of a batch's episodes is lost to errors."""
    threads: int = 1
    """Torch threads; more do not help models of a few million parameters."""

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                f"group_size must be at least 2 to have a baseline, got {self.group_size}"
            )
        positive = ("steps", "tasks_per_step", "updates_per_step", "micro_tokens", "max_new_tokens")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.temperature <= 0:
            raise ValueError(
                f"temperature must be above 0 to sample what is trained on, got {self.temperature}"
            )
        self.environment_arguments()

    def environment_arguments(self) -> dict[str, Any]:
        """Return `env_kwargs` as a dict.

        Raises:
            ValueError: it is not a JSON object.
        """
        try:
            arguments = json.loads(self.env_kwargs)
        except json.JSONDecodeError as error:
            raise ValueError(f"env_kwargs must be JSON, got {self.env_kwargs!r}: {error}") from None
        if not isinstance(arguments, dict):
            raise ValueError(f"env_kwargs must be a JSON object, got {self.env_kwargs!r}")
        return arguments

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**dataclasses.asdict(self), "out": str(self.out)}
