"""One frozen dataclass says what a training run is; the run folder keeps it as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from turnwise.agents.renderer import checked_recall
from turnwise.trainers.addresses import addresses_in, repeated, same_servers
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
    """Folder or Hugging Face name of the model that a distillation recipe learns from, or the
    address of a vLLM server that holds it. It has the student's tokenizer. `dagger` also learns
    from the text of openai:MODEL@URL."""
    engine: str = ""
    """Where to sample: `embedded` on the trainer's own weights, as by default, or the address of a
    vLLM server, or several with commas between; see `turnwise serve-policy`."""
    engine_sync: str = "reload"
    """How a server gets new weights: `reload` of a folder, `phases` (vLLM's own protocol, with the
    backend that `turnwise serve-policy` loads), or `lora` (the adapter alone)."""
    engine_route: str = "completions"
    """How a server is asked: `completions`, or `generate`, which tells versions by the token."""
    engine_sleep: int = 0
    """Level at which servers on the trainer's own GPU sleep while it learns: 1 keeps their weights
    in main memory, 2 forgets them, 0 does neither; see `turnwise serve-policy --colocated`."""
    engine_tolerance: float = 0.02
    """Nats by which a server may differ from itself at the start, and from the trainer on the probe
    after each update; a server in bfloat16 needs about 0.1."""
    steps: int = 100
    """Batches of episodes to play and to learn from."""
    tasks_per_step: int = 16
    """Tasks of a batch."""
    group_size: int = 8
    """Attempts per task; they are each other's baseline."""
    pipeline_depth: int = 0
    """Batches that are played while one is learnt from: its samples are older than the weights by
    so many steps. 0 plays and learns by turns. See docs/asynchrony.md."""
    updates_per_step: int = 2
    """Optimizer steps per batch; the second one is off-policy by the first."""
    learning_rate: float = 5e-4
    warmup_steps: int = 5
    """Steps in which the learning rate rises to its full value."""
    decay_from: float = 1.0
    """Share of the steps after which the learning rate falls linearly to a tenth."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """A longer gradient is scaled down to this; inf scales none."""
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
    """Stop when a larger share of a batch's episodes, or of a teacher's labels, is lost."""
    retries: int = 1
    """Further attempts at an episode, each in a fresh environment, after an error of the machine or
    of the environment."""
    reply_timeout_s: float = 900.0
    """Deadline of one request to the engine; the episode then counts as lost to the machine."""
    stall_timeout_s: float = 900.0
    """With `pipeline_depth` or `ray`: a rollout that hangs in one call for so long is given up, and
    what is left of its batch is lost. A worker of Ray is ended, and its groups are played again."""
    threads: int = 1
    """Threads of torch, in each process; a small model gains little from more."""
    processes: int = 1
    """Processes that share the episodes and the gradient of every step; see docs/scaling.md. Under
    `accelerate launch` it is as many as were launched."""
    shard: bool = False
    """Split weights, gradients and optimizer over the processes (FSDP2)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the matrix products of an update; weights and softmaxes stay float32. The engine plays in
    that of the weights: watch `engine_gap`, and set `correct_mismatch` with bf16."""
    checkpoint_activations: bool = False
    """Keep no activations inside the layers, and compute them again in the backward pass."""
    flex_attention: bool = False
    """On a GPU, attend in an update by a compiled `flex_attention`, if it proves itself equal to
    padded blocks there. Not run on a GPU by us; see docs/scaling.md."""
    rank_timeout_s: float = 1800.0
    """How long a process waits for the others at one place before it gives the run up."""
    ray: bool = False
    """Play on workers of a Ray cluster, with an engine each; the learner stays here. See
    docs/scaling.md."""
    ray_address: str = ""
    """HOST:PORT of a cluster that runs, or `auto`; by default what RAY_ADDRESS says, else a cluster
    on this machine that ends with the run."""
    ray_workers: int = 2
    """Workers that share the groups of every step; with `pipeline_depth`, the batches, too."""
    ray_worker_resources: str = "{}"
    """JSON object of what Ray keeps for each worker, a core without any: num_cpus, num_gpus, memory
    (bytes), or names of your own, as '{"num_gpus": 1, "fast_disk": 1}'. It plays on its GPU."""
    ray_learner_resources: str = "{}"
    """JSON object of what Ray is to keep for the learner on the node where it was started."""
    ray_timeout_s: float = 300.0
    """How long to wait for a first worker, and for new ones where all are lost."""

    def __post_init__(self) -> None:
        self._require_numbers()
        if self.group_size < 2:
            raise ValueError(
                f"group_size must be at least 2 to have a baseline, got {self.group_size}"
            )
        positive = ("steps", "tasks_per_step", "updates_per_step", "micro_tokens", "max_new_tokens")
        for name in (*positive, "max_tokens", "threads", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.temperature <= 0:
            raise ValueError(
                f"temperature must be above 0 to sample what is trained on, got {self.temperature}"
            )
        for name in ("max_failed", "decay_from", "prompt_replay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, got {getattr(self, name)}")
        self._require_servers()
        if self.rank_timeout_s <= 0:
            raise ValueError(f"rank_timeout_s must be above 0, got {self.rank_timeout_s}")
        self._require_importance()
        self._require_sleep()
        self._require_ray()
        if self.recall is not None:
            checked_recall(self.recall)
        for name in ("lora_rank", "checkpoint_every", "pipeline_depth", "retries"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("reply_timeout_s", "stall_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        self.environment_arguments()
        self.options_of_recipe()

    @property
    def has_servers(self) -> bool:
        """Whether servers sample, and not the trainer's own weights."""
        return self.engine not in ("", "embedded")

    def _require_numbers(self) -> None:
        """Refuse what is no number, and rates and limits that would teach nothing or the wrong."""
        for name, value in dataclasses.asdict(self).items():
            endless = value == math.inf and name == "max_grad_norm"  # no clipping
            if isinstance(value, float) and not math.isfinite(value) and not endless:
                raise ValueError(f"{name} must be a finite number, got {value}")
        for name in ("learning_rate", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0 to learn, got {getattr(self, name):g}")
        for name in ("weight_decay", "warmup_steps", "engine_tolerance", "seed", "first_task"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name):g}")

    def _require_servers(self) -> None:
        """Refuse one server by two names, and more batches at once than there are servers."""
        if not self.has_servers:
            return
        if again := repeated(self.engine):
            raise ValueError(
                f"engine {self.engine!r} names one server twice, again as {', '.join(again)}: its "
                "weights would be changed by two at once; name each server once"
            )
        if self.pipeline_depth > len(addresses_in(self.engine)):
            raise ValueError(
                f"pipeline_depth {self.pipeline_depth} plays so many batches at once, each under "
                f"weights of its own, and engine {self.engine!r} has fewer servers: name at least "
                f"{self.pipeline_depth}, with commas between, or lower pipeline_depth"
            )

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

    def _require_sleep(self) -> None:
        """Refuse servers that would sleep when they are needed, or wake without their weights."""
        if self.engine_sleep not in (0, 1, 2):
            raise ValueError(f"engine_sleep is a level from 0 to 2, got {self.engine_sleep}")
        if not self.engine_sleep:
            return
        level = f"engine_sleep {self.engine_sleep}"
        if not self.has_servers:
            raise ValueError(f"{level} is for servers: name them with engine, or leave it out")
        if self.pipeline_depth:
            raise ValueError(
                f"{level} has the servers asleep while the trainer learns, and pipeline_depth "
                f"{self.pipeline_depth} plays on them then: set one of the two to 0"
            )
        if self.engine_sleep > 1 and self.engine_sync == "lora":
            raise ValueError(
                f"{level} has the servers forget the weights that an adapter of engine_sync lora "
                "is for: set engine_sleep 1"
            )
        if both := same_servers(self.engine, self.teacher):
            raise ValueError(
                f"{level} has {', '.join(both)} asleep when it is asked as a teacher: serve the "
                "teacher elsewhere"
            )

    def _require_ray(self) -> None:
        """Refuse what workers of Ray do not go with, and their settings where there are none."""
        names = [option.name for option in dataclasses.fields(self)]
        ours = {name: getattr(self, name) for name in names if name.startswith("ray_")}
        changed = [name for name, value in ours.items() if value != getattr(TrainConfig, name)]
        if changed and not self.ray:
            raise ValueError(
                f"{changed[0]} {ours[changed[0]]!r} is for workers of Ray: set ray, too"
            )
        self.worker_resources(), self.learner_resources()
        if self.ray_workers < 1 or self.ray_timeout_s <= 0:
            raise ValueError(
                "ray_workers must be at least 1 and ray_timeout_s above 0, got "
                f"{self.ray_workers} and {self.ray_timeout_s}"
            )
        if "://" in self.ray_address:
            raise ValueError(
                f"ray_address is HOST:PORT of the cluster's head, got {self.ray_address!r}: start "
                "the run on a node of the cluster"
            )
        if self.ray and self.pipeline_depth > self.ray_workers:
            raise ValueError(
                f"pipeline_depth {self.pipeline_depth} plays so many batches at once, each with "
                f"workers of its own, and ray_workers is {self.ray_workers}: set it to at least "
                f"{self.pipeline_depth}, or lower pipeline_depth"
            )

    def worker_resources(self) -> dict[str, float]:
        """Return `ray_worker_resources` as a dict."""
        found = _resources("ray_worker_resources", self.ray_worker_resources)
        return found or {"num_cpus": 1}

    def learner_resources(self) -> dict[str, float]:
        """Return `ray_learner_resources` as a dict."""
        return _resources("ray_learner_resources", self.ray_learner_resources)

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


def _resources(name: str, text: str) -> dict[str, float]:
    """Return amounts by name. Raises ValueError: one of them is no number, or below 0."""
    found = _json_object(name, text)
    for resource, amount in found.items():
        if isinstance(amount, bool) or not isinstance(amount, int | float) or amount < 0:
            raise ValueError(f"{name} holds numbers of 0 or more, got {resource}={amount!r}")
    return found
