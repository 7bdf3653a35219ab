"""`check_env`: is an environment sound? The contract, as a function to run on one's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from turnwise.envs.base import Env
from turnwise.envs.extras import MissingExtra
from turnwise.envs.playing import Broken, Skipped, Subject
from turnwise.envs.probes import PROBES
from turnwise.envs.registry import make
from turnwise.sandboxes.base import SandboxError


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


@dataclass(frozen=True, slots=True)
class Report:
    """How an environment fared; `print(report)` shows a table."""

    env: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no law is broken."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The laws that are broken."""
        return tuple(check for check in self.checks if check.status == "fail")

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {"env": self.env, "ok": self.ok, "checks": [asdict(check) for check in self.checks]}

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [f"{self.env}: {'sound' if self.ok else f'{len(self.failures)} broken'}"]
        for check in self.checks:
            lines.append(f"  {check.status:4}  {check.name:{width}}  {check.detail}")
            if check.mend:
                lines.append(f"  {'':4}  {'':{width}}  mend: {check.mend}")
        return "\n".join(lines)


def check_env(
    env: str | Env | Callable[[], Env],
    /,
    *,
    seeds: Sequence[int] = range(8),
    concurrency: int = 8,
    **kwargs: Any,
) -> Report:
    """Return how `env` keeps the laws of `turnwise.envs.probes`; see there for each.

    Args:
        env: An id, `module:Class`, a class or function that makes one, or an environment that was
            made by `turnwise.envs.make` or without arguments.
        seeds: Of the episodes that are played.
        concurrency: How many environments are alive at once.
        kwargs: Arguments of the constructor.

    Raises:
        UnknownEnv: there is no such environment.
        MissingExtra: it needs a package that is not installed.
        SandboxError: it could not be started on this machine.
        ValueError: there are no seeds, or fewer than two environments at once.
    """
    if not seeds or concurrency < 2:
        raise ValueError(f"need a seed and concurrency >= 2, got {list(seeds)} and {concurrency}")
    name, maker = _maker(env, kwargs)
    subject = Subject(name, maker, list(seeds), concurrency)
    with subject.open() as first:  # what cannot even start is an error, not a finding
        first.reset(seed=seeds[0])
    return Report(name, tuple(_run(probe, subject) for probe in PROBES))


def _maker(
    env: str | Env | Callable[[], Env], kwargs: dict[str, Any]
) -> tuple[str, Callable[[], Env]]:
    """Return (name, function that makes a fresh environment)."""
    if isinstance(env, str):
        return env, lambda: make(env, **kwargs)
    if isinstance(env, Env):
        if env.env_id:
            return _maker(env.env_id, {**env.env_kwargs, **kwargs})
        return type(env).__name__, lambda: type(env)(**kwargs)
    return getattr(env, "__name__", "env"), lambda: env(**kwargs)


def _run(probe: Callable[[Subject], str], subject: Subject) -> Check:
    """Run one probe; whatever it meets becomes a line of the report."""
    name, began = probe.__name__.replace("_", " "), time.perf_counter()

    def check(status: Literal["pass", "fail", "skip"], detail: str, mend: str = "") -> Check:
        return Check(name, status, detail, mend, round(time.perf_counter() - began, 3))

    try:
        return check("pass", probe(subject))
    except Skipped as why:
        return check("skip", str(why))
    except Broken as broken:
        return check("fail", str(broken), broken.mend)
    except (SandboxError, MissingExtra):
        raise
    except Exception as error:
        mend = "this exception left the environment: mend the code that raised it"
        return check("fail", f"{type(error).__name__}: {error}", mend)
