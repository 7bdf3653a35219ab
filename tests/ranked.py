"""Runs that one process and several make alike, and what each rank does in them.

As a script (`ranked.py FOLDER NAME...`) it is one rank, or the only process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import Walks
from transformers import GPT2Config, GPT2LMHeadModel

from turnwise.agents.record import read_records
from turnwise.agents.renderer import Renderer
from turnwise.trainers import engines, ranks
from turnwise.trainers.batch import rows_of, taught
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.learner import Learner
from turnwise.trainers.loop import train
from turnwise.trainers.model import tiny_from_env
from turnwise.trainers.sft import demonstrations

torch.set_num_threads(1)

TINY = {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "ffn": 64}
USUAL = {"tasks_per_step": 3, "group_size": 4, "max_new_tokens": 3, "max_tokens": 96, "steps": 3}
USUAL |= {"learning_rate": 2e-3, "warmup_steps": 1, "checkpoint_every": 1, "micro_tokens": 120}
PLAIN = {"env": "ranked:Mortal", "model": "model"}
LOPSIDED = {"env": "ranked:Lopsided", "model": "model"}
PACED = {**PLAIN, "pipeline_depth": 1}
ALL_ON = {"precision": "bf16", "checkpoint_activations": True, "correct_mismatch": True}
ADAPTERS = {"learning_rate": 1e-3, "lora_rank": 2}
RUNS = {
    "plain": PLAIN,
    "sod": {**PLAIN, "recipe": "sod", "teacher": "teacher"},
    "kl": {**PLAIN, "recipe": "gkd", "teacher": "teacher", "steps": 2},
    "uneven": {**LOPSIDED, "tasks_per_step": 4, "group_size": 8, "steps": 2},
    "few": {**LOPSIDED, "tasks_per_step": 2, "group_size": 8, "steps": 2},
    "dropped": {**LOPSIDED, "recipe": "dapo", "tasks_per_step": 4},
    "one_group": {**LOPSIDED, "tasks_per_step": 1, "group_size": 8},
    "adapters": {**PLAIN, **ADAPTERS, "steps": 2},
    "other": {**PLAIN, "model": "other", "recipe": "sod", "teacher": "teacher", "steps": 2},
    "dagger": {**PLAIN, "recipe": "dagger", "steps": 2},
    "all_on": {**PLAIN, **ALL_ON, "steps": 2},
    **dict.fromkeys(("longer", "killed", "from_one", "from_shards", "from_two"), PLAIN),
    **dict.fromkeys(("paced", "paced_longer", "paced_killed", "paced_from_one"), PACED),
    "paced_deep": {**LOPSIDED, "recipe": "dapo", "tasks_per_step": 4, "pipeline_depth": 2},
    "paced_b2f": {**PACED, "recipe": "tcod_b2f", "teacher": "teacher", "steps": 2},
    "paced_slow": {**PACED, "env": "ranked:Threaded", "steps": 2},
    "paced_hangs": {**PACED, "env": "ranked:Hanging", "stall_timeout_s": 2.0, "max_failed": 1.0}
    | {"recipe": "dapo"},
}
"""Name to settings; with `-shard` behind it, the weights are split where there are several."""


class Mortal(Walks):
    """Walks in which the rank TURNWISE_TEST_DIES of a run dies in its third step."""

    def respond(self, action):
        dies = os.environ.get("TURNWISE_TEST_DIES", "nobody") == os.environ.get("RANK")
        if dies and self.task.index >= 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().respond(action)


class Lopsided(Walks):
    """Walks of which every other one pays nothing, whatever is done: a method may drop those."""

    wanted = frozenset("abcdefghijklmnop")

    def respond(self, action):
        answer = super().respond(action)
        return answer if self.task.index % 2 == 0 else replace(answer, reward=0.0)


class Threaded(Walks):
    """Walks on a thread: what is over is kept where others of its batch are not."""

    fast = False


class Hanging(Lopsided):
    """Of which rank 1 never comes back from the second group of the second step."""

    def respond(self, action):
        if self.task.index == 13 and os.environ.get("RANK") == "1":
            time.sleep(600)
        return super().respond(action)


def models(folder: Path) -> None:
    """Write the models that the runs start from."""
    for name, seed in (("model", 0), ("teacher", 1)):
        model, tokenizer = tiny_from_env(Walks, tasks=10, max_len=128, seed=seed, **TINY)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    sized = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
    still = {f"{part}_pdrop": 0.0 for part in ("resid", "embd", "attn")}
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), **sized, **still, **ends)
    GPT2LMHeadModel(config).save_pretrained(folder / "other")
    tokenizer.save_pretrained(folder / "other")


def settings(folder: Path, name: str, **more) -> dict:
    """What `TrainConfig` takes."""
    kind, _, shard = name.partition("-")
    found = {**USUAL, **RUNS[kind], "out": folder / name, **_options(folder.parent), **more}
    named = {key: str(folder.parent / found[key]) for key in ("model", "teacher") if key in found}
    return {**found, **named, "shard": bool(shard) and ranks.asked() > 1}


def _options(home: Path) -> dict:
    """Further settings of all runs of several processes, where a test has left any."""
    place = home / "options.json"
    return json.loads(place.read_text()) if ranks.asked() > 1 and place.exists() else {}


def go(folder: Path, name: str, **more) -> list[dict]:
    """Make a run and return its metrics by step."""
    config = TrainConfig(**settings(folder, name, **more))
    with pytest.MonkeyPatch.context() as patch:
        if config.env == "ranked:Threaded":  # the next batch is over before one is learnt from
            patch.setattr(Learner, "improve", _slowly(Learner.improve))
        return list(train(config))


def _slowly(improve):
    def later(*args):
        time.sleep(3.0)
        return improve(*args)

    return later


def sampled(out: Path) -> list[tuple]:
    """Every episode of a run in the order of its record: its name and tokens."""
    return [
        (e.id, e.reward, *(turn.action_ids for turn in e.turns))
        for e in (row.episode for row in read_records(out / "episodes.jsonl"))
    ]


def gradients(folder: Path) -> dict[str, float]:
    """Lengths of one gradient: of three trajectories and of one, whole and split."""
    found = {}
    for kind in ("whole", "split"):
        for many in (3, 1):
            model, tokenizer = tiny_from_env(Walks, tasks=10, max_len=128, **TINY)
            demos = [demo for n in range(many) for demo in _shown(Renderer(tokenizer), n)]
            shard = kind == "split" and ranks.count() > 1
            learner = Learner(model, learning_rate=1e-3, micro_tokens=30, shard=shard)
            out = learner.imitate(rows_of(demos, taught))
            found |= {f"{kind} {many} {key}": out[key] for key in ("loss", "grad_norm", "nll")}
    return found


def _shown(renderer, number):
    tasks = Walks().tasks("train")[number : number + 1]
    return demonstrations(lambda: Walks(length=1 + 2 * number), tasks, renderer, seed=0)


def come_late() -> None:
    """Have the rank TURNWISE_TEST_LATE look at the servers a while after the others."""
    look = engines.connected

    def late(*args):
        if os.environ.get("TURNWISE_TEST_LATE") == os.environ.get("RANK"):
            time.sleep(4.0)
        return look(*args)

    engines.connected = late


def main() -> None:
    """Make the runs that were named, and say on rank 0 what they gave."""
    come_late()
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    found: dict = {}
    for name in names:
        base, _, steps = name.partition("+")  # killed+4: go on to the fourth step
        options = {"resume": True, "steps": int(steps)} if steps else {}
        found[name] = go(folder, base, **options)
    ranks.join(1, 60)
    found["gradients"] = gradients(folder)
    if ranks.is_main():
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
    ranks.leave(0)  # as `turnwise train` does: gloo may end an interpreter that is taken down
