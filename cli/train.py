"""`turnwise train`: reinforcement learning from the command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

from rich.text import Text

from turnwise.cli.display import console, finite
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.progress import Progress, spelled

INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Options(TrainConfig):
    """Train a model that acts in an environment: it plays, earns credit by the turn, and improves.

    Ctrl-C stops after the present step and saves; the same command with --resume goes on.

    example:
      turnwise train --env turnwise/FileHunt-v1 --model runs/demo/sft --steps 50 --out runs/mine
    """

    json: bool = False
    """Print the metrics of each step as one line of JSON."""


def run(options: Options) -> int:
    """Train to the end and return the exit code."""
    from turnwise.trainers.loop import train

    config = TrainConfig(**{f.name: getattr(options, f.name) for f in fields(TrainConfig)})
    rows = train(config)
    last = _print_lines(rows) if options.json else _show(rows, config)
    done = int(last.get("step", config.steps))
    if done < config.steps:
        out = console(stderr=True)
        out.print(Text(f"stopped after step {done} of {config.steps}, saved; go on with --resume"))
        return INTERRUPTED
    if not options.json:
        _conclude(config)
    return 0


def _print_lines(rows: Iterator[dict[str, Any]]) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for last in rows:
        print(json.dumps(finite(last), allow_nan=False), flush=True)
    return last


def _show(rows: Iterator[dict[str, Any]], config: TrainConfig) -> dict[str, Any]:
    with console(stderr=True).status("first step"):  # what is wrong with the config shows here
        last = next(rows, {})
    with Progress(console(), f"{config.recipe} on {config.env}") as progress:
        for row in chain([last] if last else [], rows):
            last = progress.show(row, total=config.steps)
    return last


def _conclude(config: TrainConfig) -> None:
    model = config.out / "model"
    measure = [spelled(), "eval", config.env, "--policy", str(model)]
    if config.env_kwargs != "{}":
        measure += ["--env-kwargs", config.env_kwargs]
    look = [spelled(), "view", str(config.out), "-o", str(config.out / "report.html")]
    out = console()
    out.print(Text(f"\nmodel in {model}; measure it on held-out tasks, look at its episodes:"))
    for command in (measure, look):
        out.print(Text(f"  {shlex.join(command)}", style="cyan"), soft_wrap=True)
