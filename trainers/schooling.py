"""The default pipeline: demonstrations -> SFT -> teacher RL -> bridge -> OPD -> student RL.

    student     a tiny model that imitates the environment's expert, early stopped
    teacher     a larger one that imitates it for longer
    teacher_rl  learns from its own attempts
    bridge      the student learns the teacher's distributions on the teacher's own attempts
    opd         the student learns them on its own attempts, from the first turns to the last, and
                from what these earn
    rl          the student learns from the reward alone

Bridge and OPD are guarded: they end where the score on dev tasks no longer rises, and go back to
the best weights (`turnwise.trainers.guard`). Each stage's model is evaluated on dev and test tasks.

Measured under teachers that know the failures, the opd stage costs a little: the bridge, then rl,
ends .03 to .08 above the whole. `skip_opd` leaves it out; see "Pipeline" in docs/results.md.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from turnwise.agents.renderer import Renderer
from turnwise.agents.score import Report
from turnwise.trainers.addresses import is_served
from turnwise.trainers.asked import fitted
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.guard import (
    Best,
    Guard,
    best_of,
    forget_unprobed,
    leave_on_success,
    score_of,
)
from turnwise.trainers.lesson import CRAFT_RL, Lesson
from turnwise.trainers.lesson_run import (
    INTERRUPTED,
    imitation,
    measured,
    method_of,
    trained,
    unmeasured,
)
from turnwise.trainers.loop import train
from turnwise.trainers.model import load_model, save_model
from turnwise.trainers.pipeline import attempted
from turnwise.trainers.progress import Progress
from turnwise.trainers.readiness import require_ready
from turnwise.trainers.stages import Interrupted, Named, Stage, run_stages

BRIDGE = replace(
    CRAFT_RL,
    recipe="dagger",
    recipe_options='{"first": 1.0, "least": 1.0, "white_box": true}',
    steps=12,
    tasks_per_step=32,
    group_size=2,
    updates_per_step=20,
    learning_rate=3e-3,
)
"""Off-policy: the teacher takes every turn. Many tasks and few attempts at each, for there is no
baseline to be had from the others, and what is learnt must hold for other tasks."""
OPD = replace(CRAFT_RL, recipe="tcod_f2b", recipe_options='{"every": 1, "reward": true}')


@dataclass(frozen=True, kw_only=True)
class Schooling(Lesson):
    """A lesson in five stages; `train` is the last one, the student's RL."""

    out: Path = Path("runs/pipeline")
    dev_tasks: int = 200
    """Tasks of the dev split on which each stage's model is evaluated."""
    probe_tasks: int = 100
    """Other dev tasks, on which the guard looks."""
    bridge: TrainConfig = BRIDGE
    bridge_guard: Guard = field(default_factory=lambda: Guard(every=1, patience=3))
    skip_opd: bool = False
    """Leave the middle stage out: from the bridge straight to the reward."""
    opd: TrainConfig = OPD
    opd_guard: Guard = field(default_factory=lambda: Guard(every=5, patience=3, settle=10))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bridge", "opd"):
            guard, plan = getattr(self, f"{name}_guard"), getattr(self, name)
            if guard.every != int(guard.every):
                raise ValueError(f"{name}_guard.every is a whole number of steps: {guard.every}")
            if plan.lora_rank:
                raise ValueError(f"{name} is guarded, and the guard keeps whole weights: no LoRA")


def run_schooling(plan: Schooling) -> int:
    """Run every stage and print what came out; return 0, or 130 if it was interrupted.

    Raises:
        PlanChanged: the run folder holds models that were made under another plan.
        RunFolderError: the same, of a stage that was begun and is not whole.
        UnknownRecipe, and what `require_ready` raises: before anything is made.
    """
    torch.set_num_threads(plan.train.threads)
    console, runs = Console(), ("train", "teacher_rl", "bridge", "opd")
    methods = {name: method_of(getattr(plan, name)) for name in runs}
    taught = ("bridge",) if plan.skip_opd else ("bridge", "opd")
    require_ready(plan, [methods[name] for name in taught])
    console.print(f"pipeline on {plan.env} {plan.env_kwargs}; everything goes to {plan.out}")
    if plan.skip_opd:
        console.print("the middle stage is left out: from the bridge straight to the reward")
    plan = fitted(plan, console)
    try:
        reports = run_stages(plan.out, stages_of(plan, console), partial(_looked, plan, console))
    except Interrupted:
        return INTERRUPTED
    _tell(plan, reports, console)
    return 0


def stages_of(plan: Schooling, console: Console) -> Sequence[Stage | Named]:
    """Return the stages in order; a student or a teacher that is named is not made."""
    student, start = _student(plan, console)
    teachers, teacher = _teachers(plan, console)
    bridged = plan.out / "bridge" / "model"
    bridge = replace(plan.config(plan.bridge, start, "bridge", 800_000), teacher=str(teacher))
    opd = replace(plan.config(plan.opd, bridged, "opd", 500_000), teacher=str(teacher))
    taught = [_guarded(plan, bridge, plan.bridge_guard, console)]
    if not plan.skip_opd:
        taught.append(_guarded(plan, opd, plan.opd_guard, console))
    last = plan.out / taught[-1].name / "model"
    rl = _free(plan, plan.config(plan.train, last, "rl", 600_000), console)
    if plan.skip_opd:  # the plan of a model does not say which one it began as
        rl = replace(rl, plan={**rl.plan, "skip_opd": True})
    return (student, *teachers, *taught, rl)


def _student(plan: Schooling, console: Console) -> tuple[Stage | Named, Path]:
    """Return the stage in which the student begins, and where it then is."""
    if plan.student:
        return Named("student", plan.student), Path(plan.student)
    return imitation(plan, "student", plan.student_sft, console), plan.out / "student"


def _teachers(plan: Schooling, console: Console) -> tuple[Sequence[Stage | Named], Path | str]:
    """Return the stages in which the teacher is made, and where it then is."""
    if is_served(plan.teacher):
        return [], plan.teacher
    if plan.teacher:
        return [Named("teacher", plan.teacher)], plan.teacher
    first = imitation(plan, "teacher", plan.teacher_sft, console)
    config = plan.config(plan.teacher_rl, plan.out / "teacher", "teacher_rl", 700_000)
    return [first, _free(plan, config, console)], config.out / "model"


def _free(plan: Schooling, config: TrainConfig, console: Console) -> Stage:
    """Return the stage in which a model learns by a method from the first step to the last."""
    name = config.out.name

    def run(folder: Path) -> Path:
        if not trained(replace(config, resume=True), console, f"{name}: {config.recipe}"):
            raise Interrupted(f"stage {name} was interrupted")
        return folder / "model"

    return Stage(name, _plan_of(plan, config), run)


def _guarded(plan: Schooling, config: TrainConfig, guard: Guard, console: Console) -> Stage:
    """Return the stage in which the student learns from the teacher for as long as it gains."""
    config = replace(config, resume=True, checkpoint_every=int(guard.every))
    wanted = _plan_of(plan, config) | {
        "guard": {**vars(guard), "by": "success and reward"},
        "probe_tasks": plan.probe_tasks,
    }
    run = partial(_learn_while_it_helps, plan, config, guard, console)
    return Stage(config.out.name, wanted, run)


def _learn_while_it_helps(
    plan: Schooling, config: TrainConfig, guard: Guard, console: Console, folder: Path
) -> Path:
    model, tokenizer = load_model(config.model)
    env = plan.make_env()
    tasks = env.tasks("dev")[-plan.probe_tasks :]
    env.close()
    limits = {"max_tokens": config.max_tokens, "max_new_tokens": config.max_new_tokens}
    sampling = replace(plan.student_sft, **limits)

    def probe() -> float:
        renderer = Renderer(tokenizer)
        return score_of(attempted(model, renderer, plan.make_env, tasks, sampling, plan.seed))

    best = Best(model, probe, folder)
    forget_unprobed(folder, best, guard)
    rows = cast(Generator[dict[str, Any]], train(config, model=(model, tokenizer)))
    with Progress(console, f"{folder.name}: {config.recipe}, guarded") as bar:
        for row in leave_on_success(rows, best, guard, until=config.steps):
            bar.show(row, total=config.steps)
    if not best.left:
        raise Interrupted(f"stage {folder.name} was interrupted")
    _say(best, len(tasks), console)
    return save_model(model, tokenizer, folder / "model")


def _say(best: Best, tasks: int, console: Console) -> None:
    kept, last = best_of(best.seen), max(best.seen)
    console.print(
        f"  {best.left} after {last:g} steps, weights of step {kept:g} kept: score "
        f"{best.seen[0.0]:.2f} -> {best.seen[kept]:.2f} on {tasks} dev tasks; "
        f"{len(best.seen)} probes, {len(best.seen) * tasks} episodes",
        highlight=False,
    )


def _plan_of(plan: Schooling, config: TrainConfig) -> dict[str, object]:
    """Return what a stage depends on: where its folders are and how it is run is not part of it."""
    left_out = {"out", "model", "teacher", "resume", "checkpoint_every", "threads", "max_failed"}
    kept = {name: value for name, value in config.to_json().items() if name not in left_out}
    return kept | {"student": plan.student, "teacher": plan.teacher}


def _looked(plan: Schooling, console: Console, name: str, model: Path) -> Mapping[str, Report]:
    """Evaluate a stage's model on dev and test tasks; the first has the floors beside it."""
    look = partial(measured, plan, model=model, console=console)
    return {
        "dev": look(f"{name}_dev", split="dev", tasks=plan.dev_tasks),
        "test": look(name, floors=name == "student"),
    }


def _tell(plan: Schooling, reports: Mapping[str, Mapping[str, Report]], console: Console) -> None:
    console.print("\nsuccess on dev and on held-out test tasks, with 95 % intervals")
    for name, floor in reports["student"]["test"].floors.items():
        console.print(f"  {name:<10} {'':<24} {floor.success}  (floor)", highlight=False)
    for name, by in reports.items():
        dev, test = str(by["dev"].success), str(by["test"].success)
        console.print(f"  {name:<10} {dev:<24} {test}", highlight=False)
    if is_served(plan.teacher):
        console.print(f"  {'teacher':<10} {unmeasured(plan.teacher)}", highlight=False)
    console.print(f"\nmodel in {plan.out}/rl/model, numbers in {plan.out}/summary.json")
