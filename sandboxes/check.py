"""`check_sandbox`: does a backend keep the contract? A function to run on one's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from turnwise.sandboxes.base import Sandbox, SandboxError, SandboxSpec
from turnwise.sandboxes.law import LIMITS, Broken, Law, Skipped, Trial
from turnwise.sandboxes.laws import LAWS
from turnwise.sandboxes.open import BACKENDS, open_sandbox

Status = Literal["pass", "fail", "skip"]


@dataclass(frozen=True, slots=True)
class LawResult:
    """How one law fared."""

    name: str
    kind: str
    """What it is about: results, cells, files, life, failures, walls or limits."""
    status: Status
    detail: str
    """What was seen, or why the law was not tried."""
    why: str
    """What goes wrong where the law does not hold."""
    mend: str = ""
    """How to mend it; empty unless it failed."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class SandboxReport:
    """How a backend fared; `print(report)` shows a table."""

    backend: str
    laws: tuple[LawResult, ...]

    @property
    def ok(self) -> bool:
        """Whether no law is broken."""
        return not self.failures

    @property
    def failures(self) -> tuple[LawResult, ...]:
        """The laws that are broken."""
        return tuple(law for law in self.laws if law.status == "fail")

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {"backend": self.backend, "ok": self.ok, "laws": [asdict(law) for law in self.laws]}

    def __str__(self) -> str:
        width = max(len(law.name) for law in self.laws)
        broken = len(self.failures)
        lines = [f"{self.backend}: {f'{broken} broken' if broken else 'keeps the contract'}"]
        for law in self.laws:
            lines.append(f"  {law.status:4}  {law.kind:8}  {law.name:{width}}  {law.detail}")
            if law.mend:
                lines += [f"  {'':14}  why: {law.why}", f"  {'':14}  mend: {law.mend}"]
        return "\n".join(lines)


def check_sandbox(backend: str | Callable[[SandboxSpec], Sandbox] = "auto", /) -> SandboxReport:
    """Return how a backend keeps the laws of `turnwise.sandboxes.laws`; about 15 s.

    It starts some boxes with small limits. Bombs, each of at most 200 MB or 100 processes, are
    tried only where the harmless attacks before them met a wall.

    Args:
        backend: `auto`, a name of `BACKENDS`, or a function that starts a box for a spec.

    Raises:
        SandboxError: not even a first box could be started.
        ValueError: there is no backend of this name.
    """
    name, open_box = _opener(backend)
    trial = Trial(open_box)
    with open_box(SandboxSpec(limits=LIMITS)) as box:
        name = box.backend if name == "auto" else name
        results: list[LawResult] = []
        for law in LAWS:
            results.append(_try(law, trial, box, results))
            if not getattr(box, "alive", True):
                # Whatever comes next would only say so again.
                results[-1] = _ended_the_box(results[-1])
                return SandboxReport(name, tuple(results))
    return SandboxReport(name, tuple(results))


def _opener(
    backend: str | Callable[[SandboxSpec], Sandbox],
) -> tuple[str, Callable[[SandboxSpec], Sandbox]]:
    """(name, function that starts a box)."""
    if callable(backend):
        return getattr(backend, "__name__", type(backend).__name__), backend
    if backend != "auto" and backend not in BACKENDS:
        open_sandbox(backend)  # for its message with the nearest name

    def open_box(spec: SandboxSpec) -> Sandbox:
        return open_sandbox(backend, limits=spec.limits, image=spec.image, env=spec.env)

    return backend, open_box


def _try(law: Law, trial: Trial, box: Sandbox, before: list[LawResult]) -> LawResult:
    """Try one law; whatever it meets becomes a line of the report."""
    began = time.perf_counter()

    def result(status: Status, detail: str, mend: str = "") -> LawResult:
        seconds = round(time.perf_counter() - began, 3)
        return LawResult(law.name, law.kind, status, detail, law.why, mend, seconds)

    if law.kind == "limits" and any(r.status == "fail" for r in before if r.kind == "walls"):
        return result("skip", "a wall is missing, so that no bomb was tried")
    missing = law.needs - box.capabilities
    if missing:
        return result("skip", f"the backend does not offer {', '.join(sorted(missing))}")
    try:
        return result("pass", law.test(trial, box) or "")
    except Skipped as why:
        return result("skip", str(why))
    except Broken as broken:
        return result("fail", str(broken), law.mend)
    except SandboxError as error:
        return result("fail", f"{type(error).__name__}: {error}", law.mend)
    except Exception as error:
        return result("fail", f"raised {type(error).__name__}: {error}", law.mend)


def _ended_the_box(last: LawResult) -> LawResult:
    detail = f"{last.detail} (this ended the box; the laws after it were not tried)".strip()
    mend = last.mend or "no call may end the box: what the code in it does is a result"
    return replace(last, status="fail", detail=detail, mend=mend)
