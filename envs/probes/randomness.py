"""Laws of chance: an episode follows from its task, its seed and its actions, and nothing else."""

from __future__ import annotations

import random

import numpy as np

from turnwise.envs.playing import Broken, Played, Skipped, Subject, play, same, start
from turnwise.envs.probes import guard
from turnwise.envs.probes.deadline import side_by_side
from turnwise.envs.probes.elsewhere import played_elsewhere, through_json

OWN_RNG = (
    "take every random choice from self.rng or self.np_random, which reset seeds, and keep no "
    "state on the class or in the module; read the time as self.clock.now(), and whatever else "
    "comes from outside through self.taped"
)


DAYS = 400
"""So far ahead is the clock of the other process: another year, month and day of the week."""


def seeds_are_honoured(subject: Subject) -> str:
    """The same seed gives the same episode, after other episodes and in a fresh environment."""
    count = 0
    for count, seed in enumerate(subject.each_seed(), 1):  # noqa: B007
        with subject.open() as env, subject.open() as fresh:
            first = play(env, seed)
            play(env, seed + 1)
            again, elsewhere = play(env, seed), play(fresh, seed)
        same(first, again, f"seed {seed} played twice in one environment", OWN_RNG)
        same(first, elsewhere, f"seed {seed} played in two environments", OWN_RNG)
    return f"{count} seeds"


def seeds_differ(subject: Subject) -> str:
    """Different seeds do not all give the same episode."""
    with subject.open() as env:
        if len(env.tasks(env.splits[0])) < 2:
            raise Skipped("there is only one task")
        keys = {start(env, seed).rows[0]["task"] for seed in range(20)}
        if len(keys) == 1:
            mend = "let reset draw the task by seed; Env.begin does it"
            raise Broken("20 seeds gave one and the same task", mend)
    return f"{len(keys)} tasks from 20 seeds"


def groups_start_alike(subject: Subject) -> str:
    """All attempts at a task with one seed start from the same state, as a group must."""
    mend = "make the initial state from task and rng alone"
    with subject.open() as env, subject.open() as used:
        for seed in subject.each_seed():
            drawn = start(env, seed)
            given = {"task": drawn.info["task"]}
            same(drawn, start(env, seed, given), f"seed {seed}, its task given by hand", mend)
            play(used, seed + 1)
            for replica in range(3):
                what = f"attempt {replica} at {drawn.rows[0]['task']}"
                same(drawn, start(used, seed, given), what, mend)
    return "a task that is drawn, given, and given again"


def global_randomness_untouched(subject: Subject) -> str:
    """Neither `random` nor `numpy.random` is seeded, drawn from or relied on."""
    kept = random.getstate(), np.random.get_state()
    try:
        episodes = [_under_global_seed(subject, seed) for seed in (1, 2)]
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
    same(episodes[0], episodes[1], "the global generators were seeded with 1, then with 2", OWN_RNG)
    return "random and numpy.random"


def _under_global_seed(subject: Subject, seed: int) -> Played:
    random.seed(seed)
    np.random.seed(seed)
    before = _global_states()
    with guard.watched() as uses, subject.open() as env:
        played = play(env, subject.seeds[0])
    for name, state in _global_states().items():
        if state != before[name]:
            where = f": {uses[0]}" if uses else ""
            raise Broken(f"the global generator {name} was seeded or drawn from{where}", OWN_RNG)
    return played


def _global_states() -> dict[str, str]:
    return {"random": repr(random.getstate()), "numpy.random": _numpy_state()}


def _numpy_state() -> str:
    state = dict(np.random.get_state(legacy=False))
    parts = {key: np.asarray(part).tolist() for key, part in state["state"].items()}
    return repr({**state, "state": parts})


def same_in_another_process(subject: Subject) -> str:
    """An episode is the same in processes with other hashes, and on another day."""
    here = [_rows(subject, seed) for seed in subject.each_seed()]
    seeds = list(subject.seeds[: len(here)])
    others = side_by_side(lambda how: played_elsewhere(subject, seeds, **how), _ELSEWHERE)
    for there in others:
        for seed, one, other in zip(seeds, here, there, strict=True):
            if one.rows != other.rows:
                what = f"seed {seed} here, then in another process"
                same(one, other, what, _likely_cause(subject, seed))
    return f"{len(seeds)} seeds, other hashes, {DAYS} days later"


_ELSEWHERE = ({"hash_seed": 1, "days": 0}, {"hash_seed": 2, "days": DAYS})


def _rows(subject: Subject, seed: int) -> Played:
    with subject.open() as env:
        return through_json(play(env, seed))


def _likely_cause(subject: Subject, seed: int) -> str:
    """Tell chance from the clock from the hashes, by processes that differ in one of them."""
    ways = [(1, 0), (1, 0), (1, DAYS)]
    once, again, later = (
        played_elsewhere(subject, [seed], hash_seed=hashes, days=days)[0].rows
        for hashes, days in ways
    )
    if once != again:
        return "take ids and random bytes from self.rng: not from uuid, os.urandom, secrets or id()"
    if once != later:
        return (
            "do not read the time of day: let the clock of a world follow its turns, or read "
            "self.clock.now(), and through self.taped what reads the time by itself; a record "
            "keeps both"
        )
    return "do not use hash() of a str or the order of a set: sort, or use turnwise.envs.derive"
