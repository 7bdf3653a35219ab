"""`open_sandbox`: the one way to get a box, whatever runs it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from turnwise.sandboxes.base import (
    Limits,
    NetPolicy,
    NoSafeSandbox,
    Sandbox,
    SandboxSpec,
    Unsupported,
)


@dataclass(frozen=True)
class Backend:
    """A way to run boxes; what isolates is probed before it is first used on a machine."""

    open: Callable[[SandboxSpec], Sandbox]
    fits: Callable[[SandboxSpec], bool]
    """Whether `auto` may choose it for a spec."""
    isolates: bool = True


def _bubblewrap(spec: SandboxSpec) -> Sandbox:
    from turnwise.sandboxes.bubblewrap import open_box

    return open_box(spec)


# In the order in which `auto` tries them.
BACKENDS: dict[str, Backend] = {
    "bubblewrap": Backend(_bubblewrap, lambda spec: spec.image is None and spec.net.mode == "none"),
}


def open_sandbox(
    backend: str = "auto",
    *,
    limits: Limits | None = None,
    image: str | None = None,
    net: NetPolicy | None = None,
    env: Mapping[str, str] | None = None,
) -> Sandbox:
    """A started box; use it in a `with`, or close it.

    Args:
        backend: a name of `BACKENDS`, or `auto`: the first that fits and isolates here. There is
            no fall-back to one that does not isolate.
        limits: what it may use; `Limits()` by default.
        image: what it runs; None is this machine's own /usr.
        net: no network by default.
        env: environment variables of everything in the box.

    Raises:
        NoSafeSandbox: nothing here isolates; the message holds the command that fixes it.
        Unsupported: no backend, or not this one, can do what was asked.
        StartFailed: it could not be started this time.
        ValueError: there is no backend of this name.
    """
    spec = SandboxSpec(image, limits or Limits(), net or NetPolicy(), dict(env or {}))
    if backend == "auto":
        return _first_that_isolates(spec)
    if backend not in BACKENDS:
        near = difflib.get_close_matches(backend, ["auto", *BACKENDS], n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}?" if near else f"known: auto, {', '.join(BACKENDS)}"
        raise ValueError(f"no sandbox backend {backend!r}; {hint}")
    return _open_probed(backend, spec)


def _first_that_isolates(spec: SandboxSpec) -> Sandbox:
    fitting = [
        name for name, backend in BACKENDS.items() if backend.isolates and backend.fits(spec)
    ]
    if not fitting:
        raise Unsupported(
            f"no sandbox backend runs image {spec.image!r} with network mode {spec.net.mode!r};"
            f" there are: {', '.join(BACKENDS)}"
        )
    reasons = []
    for name in fitting:
        try:
            return _open_probed(name, spec)
        except NoSafeSandbox as error:
            reasons.append(f"{name}: {error}")
    raise NoSafeSandbox("nothing on this machine isolates agent code. " + "\n".join(reasons))


def _open_probed(name: str, spec: SandboxSpec) -> Sandbox:
    backend = BACKENDS[name]
    if backend.isolates:
        from turnwise.sandboxes.probe import probe_isolation

        probe_isolation(name, backend.open).require()
    return backend.open(spec)
