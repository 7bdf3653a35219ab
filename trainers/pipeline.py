"""Demonstrations -> SFT -> turn-level RL, measured before and after: the stages of a small run.

Each function is one stage and leaves its result in the run folder. `scripts/demo.py` and
`scripts/train_babyai.py` string them together; copy one of those for your own environment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from torch import nn

from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.evaluate import evaluate
from turnwise.agents.policy import LLMPolicy
from turnwise.agents.record import read_records
from turnwise.agents.renderer import Renderer
from turnwise.agents.replay import Divergence, execute
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.agents.score import Report
from turnwise.envs.base import Env
from turnwise.envs.types import Episode, Task
from turnwise.trainers.experts import cut_short, solved
from turnwise.trainers.learner import Learner
from turnwise.trainers.model import fingerprint
from turnwise.trainers.ranges import above, at_least, shares
from turnwise.trainers.sft import expert_episodes, imitate

MakeEnv = Callable[[], Env]


@dataclass
class Clock:
    """Wall seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`."""
        start = monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + monotonic() - start, 1)


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """How a model is brought to where RL can begin."""

    demos: int = 3000
    """Expert episodes."""
    noise: float = 0.05
    """Probability per turn that somebody stumbles instead, for the expert to recover from."""
    malformed: float = 0.3
    """Share of the stumbles that are words which call nothing."""
    steps: int = 500
    batch: int = 16
    learning_rate: float = 6e-3
    decay_from: float = 1.0
    """Share of the steps after which the learning rate falls linearly to a twentieth."""
    target: float = 0.4
    """Stop at this success on `check_tasks`; a step count alone ends anywhere between 0 and 1."""
    check_every: int = 25
    check_tasks: int = 150
    max_tokens: int = 1024
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        at_least(1, demos=self.demos, batch=self.batch, check_every=self.check_every)
        at_least(0, steps=self.steps)
        shares(noise=self.noise, malformed=self.malformed, decay_from=self.decay_from)
        above(0, learning_rate=self.learning_rate)

    def rate(self, step: int) -> float:
        """Return the factor of the learning rate: up over 20 steps, level, then down."""
        start = self.decay_from * self.steps
        left = (self.steps - step) / max(self.steps - start, 1) if step > start else 1.0
        return min(1.0, (step + 1) / 20) * max(left, 0.05)


def warm_up(
    model: nn.Module,
    tokenizer: Any,
    make_env: MakeEnv,
    plan: WarmUp,
    *,
    seed: int,
    first_task: int = 0,
    check_env: MakeEnv | None = None,
    clock: Clock | None = None,
    watch: Callable[[dict[str, float]], object] = lambda row: None,
    say: Callable[[str], object] = lambda note: None,
    tell: Callable[[str], object] = lambda line: None,
) -> dict[str, float]:
    """Fine-tune `model` in place on demonstrations until it solves `target` of the dev tasks.

    Args:
        make_env: where the expert demonstrates.
        check_env: where success is measured; None takes `make_env`. RL usually starts on harder
            tasks than those that were demonstrated.
        clock: takes the seconds of demonstrations, SFT and dev checks.
        watch: takes the metrics of each step.
        say: takes how far the demonstrations are, in words.
        tell: takes a line on what is to be known afterwards: that demonstrations were cut.

    Returns:
        The last row of metrics: steps taken, loss and success on dev tasks at T = 1.

    Raises:
        NoDemonstrations: the expert solved nothing within the limits.
        ExpertFailed: it raised something.
    """
    env, clock = make_env(), clock or Clock()
    renderer = Renderer(tokenizer)
    tasks = env.tasks("train")[first_task : first_task + plan.demos]
    settings = Settings(concurrency=64, max_tokens=plan.max_tokens)
    with clock.stage("demonstrations"):
        played = expert_episodes(
            make_env,
            tasks,
            renderer,
            seed=seed,
            noise=plan.noise,
            malformed=plan.malformed,
            settings=settings,
            watch=lambda done: say(f"{done:,} of {len(tasks):,} demonstrations"),
        )
    if line := cut_short(played, plan.max_tokens):
        tell(line)
    shown = solved(played, plan.max_tokens)
    learner = Learner(
        model,
        learning_rate=plan.learning_rate,
        schedule=plan.rate,
        weight_decay=0.01,
        max_len=plan.max_tokens,
    )
    check = check_env or make_env
    with closing(check()) as checked:
        dev = checked.tasks("dev")[: plan.check_tasks]
    last: dict[str, float] = {}

    def enough(step: int) -> bool:
        if step % plan.check_every:
            return False
        last["success"] = success_rate(learner.model, renderer, check, dev, plan, seed)
        return last["success"] >= plan.target

    steps = imitate(learner, shown, steps=plan.steps, batch=plan.batch, seed=seed, enough=enough)
    with clock.stage("SFT, with its checks"):
        for row in steps:
            last |= row
            watch(dict(last))
    env.close()
    return last


def success_rate(
    model: nn.Module,
    renderer: Renderer,
    make_env: MakeEnv,
    tasks: Sequence[Task],
    plan: WarmUp,
    seed: int,
) -> float:
    """Return the success at T = 1 on `tasks`, one attempt each, nothing recorded."""
    episodes = attempted(model, renderer, make_env, tasks, plan, seed)
    return sum(e.success for e in episodes) / max(len(episodes), 1)


def attempted(
    model: nn.Module,
    renderer: Renderer,
    make_env: MakeEnv,
    tasks: Sequence[Task],
    plan: WarmUp,
    seed: int,
) -> list[Episode]:
    """Return one attempt at each of `tasks` at T = 1, but for those that the machine lost."""
    policy = policy_of(model, renderer, 1.0, plan.max_tokens, plan.max_new_tokens)
    jobs = jobs_for(tasks, run_seed=seed, split="dev")
    settings = Settings(concurrency=128, max_tokens=plan.max_tokens)
    return [e for e in play(jobs, make_env, policy, settings) if e.outcome.trainable]


def policy_of(
    model: nn.Module, renderer: Renderer, temperature: float, max_tokens: int, max_new_tokens: int
) -> LLMPolicy:
    """Return a policy that plays `model` on an engine of its own."""
    engine = EmbeddedEngine(model, slots=128, max_len=max_tokens)
    return LLMPolicy(engine, renderer, temperature=temperature, max_new_tokens=max_new_tokens)


def measure(
    model: nn.Module,
    tokenizer: Any,
    make_env: MakeEnv,
    tasks: Sequence[Task],
    path: Path,
    *,
    split: str = "test",
    temperature: float = 1.0,
    seed: int = 0,
    by: Sequence[str] = (),
    floors: bool = False,
    max_tokens: int = 1024,
    max_new_tokens: int = 16,
) -> Report:
    """Evaluate on held-out tasks; the episodes go to `path`."""
    policy = policy_of(model, Renderer(tokenizer), temperature, max_tokens, max_new_tokens)
    return evaluate(
        make_env,
        tasks,
        policy,
        Settings(concurrency=128, max_tokens=max_tokens),
        record_path=path,
        run_seed=seed,
        split=split,
        by=by,
        floors=None if floors else {},
        info={"temperature": temperature, "model": fingerprint(model)},
    )


def replay_all(paths: Sequence[Path]) -> list[tuple[Path, Episode, Divergence | None]]:
    """Re-execute every episode of the records and return each with its first divergence."""
    return [
        (path, row.episode, execute(row.episode)) for path in paths for row in read_records(path)
    ]


def summary_of(report: Report) -> dict[str, Any]:
    """Return the part of a report that a summary file holds."""
    whole = report.to_json()
    kept = ("success", "reward", "by", "outcomes", "episodes", "masked", "turns")
    floors = {name: floor.success.to_json() for name, floor in report.floors.items()}
    return {name: whole[name] for name in kept} | {"floors": floors}


def plan_to_json(plan: Any) -> dict[str, Any]:
    """Return a frozen plan as JSON values."""
    return {
        name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(plan).items()
    }
