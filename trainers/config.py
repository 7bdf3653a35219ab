"""One frozen dataclass says what a training run is; the run folder keeps it as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from turnwise.agents.renderer import checked_recall
from turnwise.trainers.recipe import Recipe, mixed_rewards
from turnwise.trainers.surrogates import Importance, token_mask, truncated, uncorrected, veto

IMPORTANCE: dict[str, Importance] = {
    "none": uncorrected,
    "tis": truncated(),
    "mask": token_mask(),
    "veto": veto(),
}
"""Corrections that a configuration can name; a recipe may have any other."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A run of on-policy training. The defaults run on a laptop's CPU."""

    env: str = "turnwise/FileHunt-v1"
    """An id that `turnwise list` shows, or `module:Class`."""
    env_kwargs: str = "{}"
    """JSON object of the environment's arguments, as '{"depth": [2, 6]}'."""
    model: str = ""
    """Folder or Hugging Face name of a causal model with a chat template. Required."""
    recipe: str = "turn_rloo"
    """A name that `turnwise recipes` lists."""
    recipe_options: str = "{}"
    """JSON object of the recipe's arguments, as '{"gamma": 0.5}' for turn_rloo."""
    teacher: str = ""
    """Folder or Hugging Face name of the model that a distillation recipe learns from. It has the
    student's tokenizer."""
    steps: int = 100
    """Batches of episodes to play and to learn from."""
    tasks_per_step: int = 16
    """Tasks of a batch."""
    group_size: int = 8
    """Attempts per task; they are each other's baseline."""
    updates_per_step: int = 2
    """Optimizer steps per batch; the second one is off-policy by the first."""
    learning_rate: float = 5e-4
    warmup_steps: int = 5
    """Steps in which the learning rate rises to its full value."""
    decay_from: float = 1.0
    """Share of the steps after which the learning rate falls linearly to a tenth."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """A longer gradient is scaled down to this."""
    temperature: float = 1.0
    """Of sampling."""
    max_new_tokens: int = 64
    """Tokens of an action, at most."""
    max_tokens: int = 1024
    """Tokens of an episode, all that the agent reads and writes together, at most; with `recall`
    those of one prompt and its action."""
    max_turns: int | None = None
    """Turns of an episode, at most; by default the environment's own limit."""
    recall: int | None = None
    """Past turns that a prompt shows, besides the system message and the present observation; all
    else is forgotten, also the task, where no observation repeats it. By default what the model's
    folder notes, else all."""
    micro_tokens: int = 8192
    """Tokens per forward pass of an update."""
    lora_rank: int = 0
    """Train low-rank adapters instead of all weights; 0 trains all."""
    correct_mismatch: bool = False
    """Recompute log-probabilities before a step, for an engine that is not exact (`engine_gap`)."""
    importance: str = ""
    """Of w = pi_trainer / pi_engine, with `correct_mismatch`: "tis" weighs a token by min(w, 2),
    "mask" by w within .5 to 2 and by 0 elsewhere, "veto" drops a trajectory with a token of
    w < 1e-4, "none" weighs nothing; by default what the recipe has."""
    dynamic: bool = False
    """Play further groups in place of those whose attempts all earned the same."""
    seed: int = 0
    """Of everything that is random."""
    prompt_replay: float = 0.0
    """Probability that a slot of a batch goes to a task that was lately solved by about half of its
    attempts, in place of the next one; 0 plays the tasks in their order."""
    first_task: int = 0
    """Index of the first training task, so that two stages need not share any."""
    out: Path = field(default_factory=lambda: Path("runs/train"))
    """Run folder: config, metrics, records, checkpoints, the final model."""
    resume: bool = False
    """Go on from the newest checkpoint in the run folder."""
    checkpoint_every: int = 25
    """Steps between checkpoints; 0 saves only at the end."""
    max_failed: float = 0.5
    """Stop when a larger share of a batch's episodes is lost to errors."""
    threads: int = 1
    """Threads of torch; a small model gains little from more."""

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                f"group_size must be at least 2 to have a baseline, got {self.group_size}"
            )
        positive = ("steps", "tasks_per_step", "updates_per_step", "micro_tokens", "max_new_tokens")
        for name in (*positive, "max_tokens", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.temperature <= 0:
            raise ValueError(
                f"temperature must be above 0 to sample what is trained on, got {self.temperature}"
            )
        for name in ("max_failed", "decay_from", "prompt_replay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, got {getattr(self, name)}")
        self._require_importance()
        if self.recall is not None:
            checked_recall(self.recall)
        if self.lora_rank < 0 or self.checkpoint_every < 0:
            raise ValueError("lora_rank and checkpoint_every must be 0 or more")
        self.environment_arguments()
        self.options_of_recipe()

    def _require_importance(self) -> None:
        if self.importance and self.importance not in IMPORTANCE:
            raise ValueError(
                f"importance is one of {', '.join(IMPORTANCE)}, got {self.importance!r}"
            )
        if self.importance and not self.correct_mismatch:
            raise ValueError(
                f"importance {self.importance!r} compares recomputed log-probabilities with the "
                "engine's: set correct_mismatch, too"
            )

    def adapted(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the pieces that this run exchanges."""
        if self.importance:
            recipe = replace(recipe, importance=IMPORTANCE[self.importance])
        return replace(recipe, keep_group=mixed_rewards) if self.dynamic else recipe

    def environment_arguments(self) -> dict[str, Any]:
        """Return `env_kwargs` as a dict. Raises ValueError: it is not a JSON object."""
        return _json_object("env_kwargs", self.env_kwargs)

    def options_of_recipe(self) -> dict[str, Any]:
        """Return `recipe_options` as a dict. Raises ValueError: it is not a JSON object."""
        return _json_object("recipe_options", self.recipe_options)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**dataclasses.asdict(self), "out": str(self.out)}


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} must be JSON, got {text!r}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object, got {text!r}")
    return value
