"""`turnwise train`: reinforcement learning from the command line."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rich.text import Text

from turnwise.cli.display import console, finite
from turnwise.cli.failures import USAGE, describe
from turnwise.cli.launch import RESUME, launch, report
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
    """Train to the end and return the exit code; one of several processes ends here instead."""
    if "WORLD_SIZE" in os.environ:  # `accelerate launch`, torchrun
        from turnwise.trainers.ranks import leave

        leave(run_rank(options))
    return _launched(options) if options.processes > 1 else _train(options)


def _launched(options: Options) -> int:
    """Start the processes of the run; whichever fails, one line tells."""
    with tempfile.TemporaryDirectory(prefix="turnwise-train-") as folder:
        wanted = Path(folder) / "options.json"
        wanted.write_text(json.dumps(options.to_json()))
        code, line = launch(
            [sys.executable, "-m", "turnwise.cli.rank", str(wanted)],
            options.processes,
            logs=options.out / "ranks",
            env={"OMP_NUM_THREADS": str(options.threads)},
        )
    if line:
        print(f"turnwise train: {line}", file=sys.stderr)
    return code


def run_rank(options: Options) -> int:
    """Train as one process of several and return the exit code."""
    from turnwise.trainers.ranks import RankFailed, RankLost, rank

    try:
        return _train(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as asked:
        line = f"ended itself with sys.exit({asked.code!r}); {RESUME}"
        if not report(USAGE, line, lost=False):
            print(f"turnwise train: rank {rank()}: {line}", file=sys.stderr)
        return USAGE
    except Exception as error:
        code, line = describe(error)
        lost = isinstance(error, RankFailed | RankLost)
        if not report(code, line, lost=lost) and not isinstance(error, RankFailed):
            print(f"turnwise train: rank {rank()}: {line}", file=sys.stderr)
        return code


def _train(options: Options) -> int:
    from turnwise.trainers.loop import train

    config = TrainConfig(**{f.name: getattr(options, f.name) for f in fields(TrainConfig)})
    quiet = os.environ.get("RANK", "0") != "0"  # another process tells
    rows = train(config)
    show = _silently if quiet else _print_lines if options.json else partial(_show, config=config)
    last = show(rows)
    done = int(last.get("step", config.steps))
    if done < config.steps:
        return INTERRUPTED if quiet else _stopped(done, config)
    if not options.json and not quiet:
        _conclude(config)
    return 0


def _stopped(done: int, config: TrainConfig) -> int:
    out = console(stderr=True)
    out.print(Text(f"stopped after step {done} of {config.steps}, saved; go on with --resume"))
    return INTERRUPTED


def _silently(rows: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Train, and return the last row."""
    return (deque(rows, maxlen=1) or [{}])[0]


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
