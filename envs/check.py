"""`check_env`: is an environment sound? The contract, as a function to run on one's own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from turnwise.envs.base import Env
from turnwise.envs.names import UnknownName, hint
from turnwise.envs.playing import WORLD, Broken, Named, Skipped, Subject
from turnwise.envs.probes import ADVERSARY, COMPARES_EPISODES, LAWS, Law, name_of
from turnwise.envs.probes.blame import NOT_ITS_FAULT, lost_at, on_purpose, told
from turnwise.envs.probes.deadline import Overdue, limited
from turnwise.envs.probes.randomness import seeds_are_honoured
from turnwise.envs.registry import make, spec
from turnwise.sandboxes.base import SandboxError

STARTS = "starts"
"""The law that an environment breaks which cannot be made and reset; no other is tried then."""
MOST_OVERDUE = 2
"""After so many laws that ran out of time the others are not tried."""
MOST_LOST = 2
"""Nor after so many at which the machine failed."""


@dataclass(frozen=True, slots=True)
class Check:
    """How one law fared."""

    name: str
    status: Literal["pass", "fail", "skip"]
    detail: str
    """What was looked at, what was seen instead, or why the law does not apply."""
    mend: str = ""
    """How to mend it; empty unless it failed."""
    seconds: float = 0.0
    overdue: bool = False
    """It failed because it was not done in time."""
    lost: bool = False
    """It could not be tried, because the machine failed: a box, a browser, an engine."""


@dataclass(frozen=True, slots=True)
class Report:
    """How an environment fared; `print(report)` shows a table."""

    env: str
    checks: tuple[Check, ...]

    def with_check(self, check: Check) -> Report:
        """Return the report with one more law."""
        return replace(self, checks=(*self.checks, check))

    @property
    def ok(self) -> bool:
        """Whether no law is broken."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The laws that are broken."""
        return tuple(check for check in self.checks if check.status == "fail")

    @property
    def lost(self) -> tuple[Check, ...]:
        """The laws of which nothing is known, since the machine failed at them."""
        return tuple(check for check in self.checks if check.lost)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {"env": self.env, "ok": self.ok, "checks": [asdict(check) for check in self.checks]}

    @property
    def verdict(self) -> str:
        """In two or three words."""
        if self.failures:
            return f"{len(self.failures)} broken"
        return f"{len(self.lost)} not tried, the machine failed" if self.lost else "sound"

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [f"{self.env}: {self.verdict}"]
        for check in self.checks:
            lines.append(f"  {check.status:4}  {check.name:{width}}  {check.detail}")
            if check.mend:
                lines.append(f"  {'':4}  {'':{width}}  mend: {check.mend}")
        return "\n".join(lines)


def check_env(
    env: str | Env | Callable[..., Env],
    /,
    *,
    seeds: Sequence[int] = range(8),
    concurrency: int = 8,
    adversary: bool = False,
    laws: Sequence[str] = (),
    law_s: float = 5.0,
    deadline_s: float = 120.0,
    watch: Callable[[str], None] = lambda law: None,
    done: Callable[[Check], None] = lambda check: None,
    **kwargs: Any,
) -> Report:
    """Return how `env` keeps the laws of `turnwise.envs.probes`; see there for each.

    Args:
        env: An id, `module:Class`, a class or function that makes one, or an environment that was
            made by `turnwise.envs.make` or without arguments.
        seeds: Of the episodes that are played; a slow environment plays fewer, and the report says
            how many.
        concurrency: How many environments are alive at once.
        adversary: Also play agents that want the reward without the task.
        laws: Names of those to try; empty for all.
        law_s: About so long a law goes on to further seeds and actions; it always tries one.
        deadline_s: For each law. One that takes longer is broken, and its thread is left behind.
        watch: Called with the name of each law before it is tried, for progress.
        done: Called with how each law fared, once it is known.
        kwargs: Arguments of the constructor.

    Raises:
        UnknownEnv: there is no such environment.
        UnknownName: there is no such law.
        TypeError, ValueError: its constructor of ours refuses the arguments.
        MissingExtra: it needs a package that is not installed.
        SandboxError: it could not be started on this machine. At a single law it is in the report.
        ValueError: there are no seeds, or fewer than two environments at once.
    """
    if not seeds or concurrency < 2:
        raise ValueError(f"need a seed and concurrency >= 2, got {list(seeds)} and {concurrency}")
    chosen = _chosen(laws, adversary)
    name, maker, named = maker_of(env, kwargs)
    subject = Subject(name, maker, list(seeds), concurrency, named, law_s)
    WORLD.clear()
    watch(STARTS)
    broken = _broken_at_start(subject, deadline_s)
    found = iter((broken,)) if broken else _checks(chosen, subject, deadline_s, watch)
    report = Report(name, ())
    for check in found:
        done(check)
        report = report.with_check(check)
    return report


def _broken_at_start(subject: Subject, deadline_s: float) -> Check | None:
    """Start it once; arguments that we refuse are an error, all else that goes wrong a finding."""
    made = False

    def start() -> None:
        nonlocal made
        with subject.open() as first:
            made = True
            first.reset(seed=subject.seeds[0])

    try:
        limited(deadline_s, start)
    except Overdue as where:
        return _overdue(STARTS, where, deadline_s)
    except NOT_ITS_FAULT:
        raise
    except (Exception, SystemExit) as error:
        if not made and on_purpose(error):
            raise
        return Check(STARTS, "fail", *told(error))
    return None


def _overdue(name: str, where: Overdue, deadline_s: float) -> Check:
    what = f"not done after {deadline_s:g} s{where}"
    return Check(name, "fail", what, _LATE, deadline_s, overdue=True)


def _chosen(names: Sequence[str], adversary: bool) -> list[Law]:
    known = {name_of(law): law for law in (*LAWS, *ADVERSARY)}
    for name in names:
        if name not in known:
            raise UnknownName(f"no law {name!r}; {hint(name, known)}")
    if names:
        return [known[name] for name in names]
    return [*LAWS, *(ADVERSARY if adversary else ())]


def _checks(
    laws: Sequence[Law], subject: Subject, deadline_s: float, watch: Callable[[str], None]
) -> Iterator[Check]:
    done: dict[Law, Check] = {}
    for law in laws:
        if reason := _needless(law, done):
            check = Check(name_of(law), "skip", f"not tried: {reason}")
        else:
            watch(name_of(law))
            check = _run(law, subject, deadline_s)
        done[law] = check
        yield check


def _needless(law: Law, done: dict[Law, Check]) -> str:
    """Return why trying `law` would tell nothing, after what was seen before."""
    if sum(check.overdue for check in done.values()) >= MOST_OVERDUE:
        return "two laws ran out of time before"
    if sum(check.lost for check in done.values()) >= MOST_LOST:
        return "the machine failed at two laws before"
    seeds = done.get(seeds_are_honoured)
    if law in COMPARES_EPISODES and seeds is not None and seeds.status == "fail":
        return "seeds are not honoured"
    return ""


def maker_of(
    env: str | Env | Callable[..., Env], kwargs: dict[str, Any]
) -> tuple[str, Callable[..., Env], Named | None]:
    """Return what `check_env` was given as (name, maker of fresh ones, how others make it).

    The maker's keyword arguments go over `kwargs`; the last is None where no other process can.
    """
    if isinstance(env, str):
        found = spec(env)
        named = Named(env, found.where, kwargs, found.kwargs)
        return env, lambda **more: make(env, **{**kwargs, **more}), named
    if isinstance(env, Env):
        if env.env_id:
            return maker_of(env.env_id, {**env.env_kwargs, **kwargs})
        return maker_of(type(env), kwargs)
    name = getattr(env, "__name__", "env")
    return name, lambda **more: env(**{**kwargs, **more}), _of_class(env, kwargs)


def _of_class(made_by: object, kwargs: dict[str, Any]) -> Named | None:
    """Return how another process finds a class; None for one that no module holds."""
    module, name = getattr(made_by, "__module__", ""), getattr(made_by, "__qualname__", "")
    held = getattr(sys.modules.get(module), name, None) is made_by
    if not held or module == "__main__" or not isinstance(made_by, type):
        return None
    return Named("", f"{module}:{name}", kwargs)


def _run(law: Law, subject: Subject, deadline_s: float) -> Check:
    """Try one law; whatever it meets becomes a line of the report."""
    name, began = name_of(law), time.perf_counter()

    def check(status: Literal["pass", "fail", "skip"], detail: str, mend: str = "") -> Check:
        return Check(name, status, detail, mend, round(time.perf_counter() - began, 3))

    try:
        return check("pass", limited(deadline_s, lambda: law(subject)))
    except Skipped as why:
        return check("skip", str(why))
    except Broken as broken:
        return check("fail", str(broken), broken.mend)
    except Overdue as where:
        return _overdue(name, where, deadline_s)
    except SandboxError as error:
        return replace(check("skip", lost_at(error)), lost=True)
    except NOT_ITS_FAULT:
        raise
    except (Exception, SystemExit) as error:
        return check("fail", *told(error))


_LATE = (
    "a step must end by itself: give whatever it waits for a limit; for one that is only slow, "
    "allow more time, or fewer seeds and less concurrency"
)
