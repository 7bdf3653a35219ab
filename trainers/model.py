"""Models by folder or name, and models made on the spot from an environment's transcripts."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn

from turnwise.agents.policy import ScriptedPolicy
from turnwise.agents.rollout import jobs_for, play
from turnwise.envs.base import Env
from turnwise.envs.types import Task
from turnwise.trainers.experts import demonstrate
from turnwise.trainers.tiny import tiny_model, tiny_tokenizer, vocabulary_for


class ModelNotFound(ValueError):
    """There is no model in this folder, or under this name."""


class TokenizerMismatch(ValueError):
    """The tokenizer can produce ids that the model has no embedding for."""


def load_model(name: str, *, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    """Return a causal model and its tokenizer from a folder or a Hugging Face name.

    Args:
        name: a folder that `save_pretrained` wrote, or a name that the hub knows.
        dtype: of the weights.

    Raises:
        ModelNotFound: nothing loadable is there.
        TokenizerMismatch: the tokenizer has more ids than the model has embeddings.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(name)
    with _found("a causal model", name) as where, quiet():
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **where)
    check_match(model, tokenizer)
    return model, tokenizer


def positions_of(name: str) -> int | None:
    """Return how many tokens a model declares to hold, None if it does not say.

    Raises:
        ModelNotFound: nothing loadable is there.
    """
    from transformers import AutoConfig

    _require_model(name)
    with _found("a model's config", name) as where, quiet():
        config = AutoConfig.from_pretrained(name, **where)
    return getattr(config, "max_position_embeddings", None)


def load_tokenizer(name: str) -> Any:
    """Return the tokenizer of a model's folder or Hugging Face name.

    Raises:
        ModelNotFound: nothing loadable is there.
    """
    from transformers import AutoTokenizer

    _require_model(name)
    with _found("a tokenizer", name) as where, quiet():
        return AutoTokenizer.from_pretrained(name, **where)


@contextmanager
def _found(what: str, name: str) -> Iterator[dict[str, bool]]:
    """Yield where to look, and turn a failure to find `what` there into one line."""
    local = Path(name).is_dir()
    where = {} if local or hub_answers() else {"local_files_only": True}
    try:
        yield where
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        if where:
            reason = (
                "there is no such folder, and Hugging Face does not answer from here; give a "
                "folder that save_pretrained wrote, or a name whose files are in its cache"
            )
        raise ModelNotFound(f"cannot load {what} from {name!r}: {reason}") from None


@cache
def hub_answers() -> bool:
    """Return whether to ask Hugging Face: without a network it is half a minute of retries."""
    if getproxies():
        return True
    url = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        with socket.create_connection((url.hostname or "", url.port or 443), timeout=5.0):
            return True
    except OSError:
        return False


def _require_model(name: str) -> None:
    folder = Path(name)
    parent = folder.parent != Path(".") and folder.parent.exists()
    looks_local = name.startswith((".", "/", "~")) or folder.exists() or parent
    if not name:
        raise ModelNotFound("no model was named; give a folder or a Hugging Face name")
    if (folder / "config.json").is_file() and "model_type" in (folder / "config.json").read_text():
        return
    if (folder / "progress.json").is_file():
        raise ModelNotFound(f"{name!r} is a checkpoint, from which --resume goes on, and no model")
    if (folder / "metrics.jsonl").is_file():
        model = folder / "model"
        has = f"its model is {str(model)!r}" if model.exists() else "it has no model yet: --resume"
        raise ModelNotFound(f"{name!r} is the folder of a run: {has}")
    if looks_local and not (folder / "config.json").is_file():
        raise ModelNotFound(
            f"no model in folder {name!r}: it has no config.json; "
            "give a folder that save_pretrained wrote, or a Hugging Face name"
        )


def fingerprint(model: nn.Module) -> str:
    """Return 16 hex digits over names, shapes and values of all weights."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} ".encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_match(model: nn.Module, tokenizer: Any) -> None:
    """Refuse a tokenizer whose ids the model cannot embed.

    Raises:
        TokenizerMismatch: the largest id is beyond the embedding.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= rows:
        raise TokenizerMismatch(
            f"the tokenizer has id {largest} and the model only {rows} embeddings: they do not "
            "belong together; load both from the same folder"
        )


def save_model(model: nn.Module, tokenizer: Any, folder: str | os.PathLike[str]) -> Path:
    """Write a folder that `load_model` reads, adapters merged into the weights."""
    folder = Path(folder)
    if hasattr(model, "merge_and_unload"):
        import copy

        model = copy.deepcopy(model).merge_and_unload()
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars and notes of transformers and accelerate off the terminal."""
    from transformers.utils import logging as transformers_logging

    notes = logging.getLogger("accelerate")
    level, shown = notes.level, transformers_logging.is_progress_bar_enabled()
    notes.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        notes.setLevel(level)
        if shown:
            transformers_logging.enable_progress_bar()


def add_lora(model: nn.Module, rank: int, *, seed: int = 0) -> nn.Module:
    """Return the model with trainable low-rank adapters on every linear layer (peft).

    Args:
        rank: of the adapters; their scale is 2 * rank.
        seed: of their initial values.
    """
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, lora)


def transcripts(make_env: Callable[[], Env], tasks: Iterable[Task], seed: int) -> list[str]:
    """Return the messages of one expert episode per task: what a tokenizer should know."""
    jobs = jobs_for(tasks, run_seed=seed, split="train", prefix="text-")
    texts: list[str] = []
    for episode in play(jobs, make_env, ScriptedPolicy(demonstrate)):
        texts += [part for turn in episode.turns for part in (turn.observation, turn.action)]
        texts.append(episode.final_observation)
    return texts


def tokenizer_from_env(
    make_env: Callable[[], Env], *, tasks: int = 200, separators: Sequence[str] = (" ", "/", "-")
) -> Any:
    """Make a tokenizer from an environment's transcripts.

    Args:
        make_env: an environment with an `expert()`; its `words`, where it has them, become tokens.
        tasks: transcripts to learn from.
        separators: what a word of the closed list may be glued to.
    """
    env = make_env()
    words = tuple(getattr(env, "words", ()))
    chosen = env.tasks("train")[-tasks:]
    opening = [
        message["content"]
        for task in chosen[:8]
        for message in env.reset(seed=0, options={"task": task})[1]["messages"]
    ]
    env.close()
    texts = [*transcripts(make_env, chosen, 0), *opening * 4]
    glued = separators if words else ()
    return tiny_tokenizer(texts, vocabulary_for(words, glued), words, separators=glued)


def tiny_from_env(
    make_env: Callable[[], Env],
    *,
    seed: int = 0,
    tasks: int = 200,
    separators: Sequence[str] = (" ", "/", "-"),
    **architecture: Any,
) -> tuple[nn.Module, Any]:
    """Make a tokenizer from an environment's transcripts and a random Qwen3 model for it.

    Args:
        make_env, tasks, separators: see `tokenizer_from_env`. It does not depend on `seed`.
        architecture: passed to `tiny_model`.
    """
    tokenizer = tokenizer_from_env(make_env, tasks=tasks, separators=separators)
    return tiny_model(len(tokenizer), seed=seed, **architecture), tokenizer
