"""The boxes that `remote_server` lends: begun once, each call run once, ended when silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from turnwise.sandboxes.base import (
    ProtocolError,
    Sandbox,
    SandboxDied,
    SandboxError,
    SandboxSpec,
    StartFailed,
    Unsupported,
)
from turnwise.sandboxes.closing import ClosedAtExit
from turnwise.sandboxes.remote_calls import CALLS, Answer
from turnwise.sandboxes.remote_wire import TOKEN_RULE, is_token, pack_spec

TTL_S = 60.0


@dataclass
class Lease:
    """One box and what its client has asked of it."""

    create: str
    """The id that the client gave to its creation."""
    spec: SandboxSpec
    box: Future[Sandbox] = field(default_factory=Future)
    began: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)
    """When its client last gave a sign of life."""
    running: int = 0
    number: int = 0
    """Of the last call."""
    answer: Future[Answer] = field(default_factory=Future)

    def about(self) -> dict[str, Any]:
        """What a client may know of it."""
        box = self.box.result()
        return {
            "id": box.id,
            "backend": box.backend,
            "capabilities": sorted(box.capabilities),
            "spec": pack_spec(box.spec),
            "age_s": round(time.monotonic() - self.began, 1),
            "heard_s": round(time.monotonic() - self.heard, 1),
            "calls": self.number,
        }


class Leases(ClosedAtExit):
    """Boxes that are lent. A context manager.

    Args:
        backend: what runs them; must isolate.
        token: what a client must know. There is no way to serve without one.
        max_live: boxes at once.
        ttl_s: how long a client may be silent.
        allow: hosts that boxes may be given access to, by a spec with the network mode `proxy`.
        open_box: starts a box; by default `open_sandbox` with `backend`.

    Raises:
        ValueError: the token is too short or no ASCII, or the backend does not isolate.
    """

    def __init__(
        self,
        backend: str = "auto",
        *,
        token: str,
        max_live: int = 32,
        ttl_s: float = TTL_S,
        allow: tuple[str, ...] = (),
        open_box: Callable[[SandboxSpec], Sandbox] | None = None,
    ) -> None:
        if not is_token(token):
            raise ValueError(f"a token needs {TOKEN_RULE}; this one has {len(token)}")
        self._open = open_box or _opener(backend)
        self._secret = f"Bearer {token}".encode()
        self.max_live, self.ttl_s, self.allow = max_live, ttl_s, allow
        self._lock = threading.Lock()
        self._leases: dict[str, Lease] = {}
        self._threads = ThreadPoolExecutor(max_live + 8, "turnwise-lender")
        self._closed = threading.Event()
        threading.Thread(target=self._reap, name="turnwise-leases", daemon=True).start()

    def close(self) -> None:
        """Destroy all boxes and answer no more. Safe to call twice."""
        self._closed.set()
        with self._lock:
            leases = list(self._leases.values())
        for lease in leases:
            self._end(lease)
        self._threads.shutdown(wait=True)

    def create(self, create: str, spec: SandboxSpec) -> Lease:
        """The lease with this creation id; its box is started unless that was begun before.

        Raises:
            StartFailed: `max_live` boxes are out; try again later.
            Unsupported: the spec wants a host that this server does not give access to.
        """
        refused = set(spec.net.allow) - set(self.allow)
        if spec.net.mode != "none" and refused:
            raise Unsupported(f"this server gives no access to {', '.join(sorted(refused))}")
        with self._lock:
            if create in self._leases:
                return self._leases[create]
            lease = self._new(create, spec)
        self._threads.submit(self._start, lease)
        return lease

    def _new(self, create: str, spec: SandboxSpec) -> Lease:
        if self._closed.is_set():
            raise StartFailed("this server is shutting down")
        if len(self._leases) >= self.max_live:
            raise StartFailed(f"this server lends {self.max_live} boxes at once, all are out")
        lease = self._leases[create] = Lease(create, spec)
        return lease

    def _start(self, lease: Lease) -> None:
        try:
            box = self._open(lease.spec)
        except BaseException as error:
            self._forget(lease)
            lease.box.set_exception(_sendable(error))
            return
        lease.heard = time.monotonic()
        lease.box.set_result(box)
        with self._lock:
            wanted = self._leases.get(lease.create) is lease and not self._closed.is_set()
        if not wanted:
            box.close()

    def _end(self, lease: Lease) -> None:
        self._forget(lease)
        if lease.box.done() and lease.box.exception() is None:
            lease.box.result().close()

    def _forget(self, lease: Lease) -> None:
        with self._lock:
            if self._leases.get(lease.create) is lease:
                del self._leases[lease.create]

    def require_room(self, creates: list[str]) -> None:
        """See to it, before anything starts, that boxes may be lent under these creation ids.

        Raises:
            ValueError: an id is there twice, or lent already.
            StartFailed: they are more than there is room for.
        """
        with self._lock:
            taken = {create for create in creates if create in self._leases}
            if taken or len(set(creates)) < len(creates):
                raise ValueError(f"creates must be new and differ, got {sorted(taken or creates)}")
            self._require_free(len(creates))

    def _require_free(self, count: int) -> None:
        if count > self.max_live - len(self._leases):
            raise StartFailed(f"this server lends {self.max_live} boxes at once, there is no room")

    def adopt(self, boxes: list[Sandbox], creates: list[str]) -> list[Lease]:
        """Lend boxes that another one was forked into."""
        leases = [Lease(create, box.spec) for create, box in zip(creates, boxes, strict=True)]
        for lease, box in zip(leases, boxes, strict=True):
            lease.box.set_result(box)
        with self._lock:
            room = self.max_live - len(self._leases)
            if len(leases) <= room:
                self._leases.update({lease.create: lease for lease in leases})
                return leases
        for box in boxes:
            box.close()
        raise StartFailed(f"this server lends {self.max_live} boxes at once, there is no room")

    def call(self, lease: Lease, op: str, head: dict[str, Any], body: bytes) -> Future[Answer]:
        """The answer to call number `head["number"]`; it is begun unless it was before.

        Raises:
            ProtocolError: that call is neither the next one nor the last one.
        """
        number = head.get("number")
        with self._lock:
            if number == lease.number and number:
                return lease.answer
            if number != lease.number + 1:
                raise ProtocolError(f"call {number!r} after call {lease.number}")
            lease.number, lease.answer = lease.number + 1, Future()
            lease.running += 1
        self._threads.submit(self._run, lease, lease.answer, op, head, body)
        return lease.answer

    def _run(
        self, lease: Lease, answer: Future[Answer], op: str, head: dict[str, Any], body: bytes
    ) -> None:
        try:
            answer.set_result(CALLS[op](self, lease.box.result(), head, body))
        except BaseException as error:
            answer.set_exception(_sendable(error))
        finally:
            with self._lock:
                lease.running -= 1
                lease.heard = time.monotonic()

    def lease_of(self, id: str) -> Lease:
        """The lease of the box with this id.

        Raises:
            SandboxDied: there is none, any more or at all.
        """
        for lease in self.leases():
            if lease.box.result().id == id:
                lease.heard = time.monotonic()
                return lease
        raise SandboxDied(f"no box {id!r} is lent: it was closed, or its client was long silent")

    def leases(self) -> list[Lease]:
        """Those whose box is started."""
        with self._lock:
            leases = list(self._leases.values())
        return [one for one in leases if one.box.done() and one.box.exception() is None]

    def _reap(self) -> None:
        while not self._closed.wait(min(self.ttl_s / 4, 5.0)):
            for lease in self.leases():
                if not lease.running and time.monotonic() - lease.heard > self.ttl_s:
                    self._end(lease)


def _opener(backend: str) -> Callable[[SandboxSpec], Sandbox]:
    from turnwise.sandboxes.open import BACKENDS, open_any, open_spec

    if backend == "auto":
        return open_any
    if backend not in BACKENDS or backend == "remote" or not BACKENDS[backend].isolates:
        known = ", ".join(BACKENDS)
        raise ValueError(f"a server lends boxes of its own that isolate, not {backend!r}: {known}")
    return partial(open_spec, backend)


def _sendable(error: BaseException) -> Exception:
    """`error`, or what stands for a bug of ours: no client may wait for ever."""
    if isinstance(error, SandboxError | OSError | ValueError):
        return error
    return SandboxError(f"the server failed: {error!r}")
