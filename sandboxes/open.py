"""`open_sandbox`: the one way to get a box, whatever runs it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from turnwise.sandboxes import reaper
from turnwise.sandboxes.base import (
    Isolation,
    Limits,
    NetPolicy,
    NoSafeSandbox,
    Sandbox,
    SandboxSpec,
    Unsupported,
)
from turnwise.sandboxes.room import current_batch


@dataclass(frozen=True)
class Backend:
    """A way to run boxes; what isolates is probed before it is first used on a machine."""

    open: Callable[[SandboxSpec], Sandbox]
    fits: Callable[[SandboxSpec], bool]
    """Whether `auto` may choose it for a spec."""
    isolates: bool = True
    identity: Callable[[SandboxSpec], str] = lambda spec: ""
    """What the verdict of the probe depends on besides this machine: an engine, an image."""


def _bubblewrap(spec: SandboxSpec) -> Sandbox:
    from turnwise.sandboxes.bubblewrap import open_box

    return open_box(spec)


def _docker(spec: SandboxSpec) -> Sandbox:
    from turnwise.sandboxes.docker import open_box

    return open_box(spec)


def _docker_identity(spec: SandboxSpec) -> str:
    from turnwise.sandboxes.docker import identity

    return identity(spec)


def _remote(spec: SandboxSpec) -> Sandbox:
    from turnwise.sandboxes.remote import open_box

    return open_box(spec)


def _remote_identity(spec: SandboxSpec) -> str:
    from turnwise.sandboxes.remote import connect

    return f"{connect().url} {spec.image}"


def _unsafe(spec: SandboxSpec) -> Sandbox:
    from turnwise.sandboxes.unsafe import open_box

    return open_box(spec)


# In the order in which `auto` tries them.
BACKENDS: dict[str, Backend] = {
    "docker": Backend(_docker, lambda spec: True, identity=_docker_identity),
    "bubblewrap": Backend(_bubblewrap, lambda spec: spec.image is None),
    "remote": Backend(_remote, lambda spec: False, identity=_remote_identity),
    "unsafe": Backend(_unsafe, lambda spec: False, isolates=False),
}


def open_sandbox(
    backend: str = "auto",
    *,
    limits: Limits | None = None,
    image: str | None = None,
    net: NetPolicy | None = None,
    env: Mapping[str, str] | None = None,
    isolation: Isolation = "episode",
) -> Sandbox:
    """A started box; use it in a `with`, or close it.

    Args:
        backend: a name of `BACKENDS`, or `auto`: the first that fits and isolates here. There is
            no fall-back to one that does not isolate.
        limits: what it may use; `Limits()` by default.
        image: what it runs: an image of the docker engine; None is our base image there, and this
            machine's own /usr elsewhere.
        net: no network by default.
        env: environment variables of everything in the box.
        isolation: `batch` gives a `Room` in a box that the current `Batch` shares; it costs a
            folder instead of a box, and no wall stands between the rooms of a box.

    Raises:
        NoSafeSandbox: nothing here isolates; the message holds the command that fixes it.
        Unsupported: no backend, or not this one, can do what was asked.
        StartFailed: it could not be started this time.
        ValueError: there is no backend or isolation of this name, or no current batch.
    """
    limits, net = limits or Limits(), net or NetPolicy()
    spec = SandboxSpec(image, limits, net, dict(env or {}), isolation=isolation)
    return _room(backend, spec) if isolation == "batch" else _box(backend, spec)


def _room(backend: str, spec: SandboxSpec) -> Sandbox:
    batch = current_batch()
    if backend in BACKENDS and not BACKENDS[backend].isolates:
        raise Unsupported(f"{backend} has no walls to put rooms into; leave isolation as it is")
    if batch is None:
        raise ValueError("isolation='batch' needs a batch to share a box with: `with Batch():`")
    return batch.room(spec, lambda whole: _box(backend, whole), backend)


def _box(backend: str, spec: SandboxSpec) -> Sandbox:
    if backend == "auto":
        return open_any(spec)
    if backend not in BACKENDS:
        near = difflib.get_close_matches(backend, ["auto", *BACKENDS], n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}?" if near else f"known: auto, {', '.join(BACKENDS)}"
        raise ValueError(f"no sandbox backend {backend!r}; {hint}")
    return open_spec(backend, spec)


def open_any(spec: SandboxSpec) -> Sandbox:
    """A started box of the first backend that fits and isolates; see `open_sandbox`."""
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
            return open_spec(name, spec)
        except (NoSafeSandbox, Unsupported) as error:
            reasons.append(f"{name}: {error}")
    raise NoSafeSandbox("nothing on this machine isolates agent code. " + "\n".join(reasons))


def open_spec(
    name: str, spec: SandboxSpec, start: Callable[[SandboxSpec], Sandbox] | None = None
) -> Sandbox:
    """A started box of backend `name`, which must isolate if it says so; see `open_sandbox`.

    Args:
        start: another of the backend's ways to start a box.
    """
    backend = BACKENDS[name]
    if backend.isolates:
        from turnwise.sandboxes.probe import probe_isolation

        def open_like(probing: SandboxSpec) -> Sandbox:
            return backend.open(replace(probing, image=spec.image))

        probe_isolation(name, open_like, backend.identity(spec)).require()
    reaper.before_start(name)
    box = (start or backend.open)(spec)
    reaper.watch_over(box)
    return box
