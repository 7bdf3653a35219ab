"""What all the servers of a fleet do together: take new weights, prove them, sleep, wake.

A server that fails at it is dead, like one that fails to answer, and the others go on; a server
that may hold the wrong weights ends the change, for nothing tells its answers from right ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from turnwise.agents.engines.base import EngineError
from turnwise.agents.engines.client import ServerLost
from turnwise.agents.engines.replicas import Replica
from turnwise.agents.engines.vllm_fleet import GONE, Fleet
from turnwise.agents.engines.vllm_sleep import (
    WAKE_S,
    fall_asleep,
    replace_weights_asleep,
    rouse,
)
from turnwise.agents.engines.vllm_weights import (
    SavedWeights,
    Way,
    hot_lora,
    prove,
    replace_weights,
)
from turnwise.agents.engines.vllm_wire import version_name
from turnwise.agents.faults import log

T = TypeVar("T")


@dataclass(frozen=True)
class Held:
    """What servers hold, as one process tells another."""

    model: str
    """The name to ask for."""
    servers: tuple[str, ...]
    """Addresses of those that were proved to hold it."""


async def bring(
    fleet: Fleet, source: SavedWeights, version: int, *, way: Way, tolerance: float
) -> None:
    """Bring weights to every server that lives or has rested, and prove that they are there.

    The gate is closed from here on; who calls opens it once it knows of the version.

    Raises:
        EngineError: a server holds what it should not, or none is left.
    """
    fleet.gate.clear()
    if not fleet.wire.spans or way is hot_lora:
        await fleet.until_quiet()
    for replica in fleet.replicas.every:
        replica.proved = None
    replicas = [*fleet.replicas.living, *fleet.replicas.rested()]
    names = await _all(_renew(fleet, r, source, version, way, tolerance) for r in replicas)
    fleet.replicas.require_one()
    fleet.model = next(name for name in names if name)
    fleet.version, fleet.synced = version, True


async def _renew(
    fleet: Fleet,
    replica: Replica,
    source: SavedWeights,
    version: int,
    way: Way,
    tolerance: float,
) -> str:
    """Return the model's name on a server that is right now; empty if it is dead."""
    server, salt = replica.server, version_name(version)
    try:
        change = replace_weights_asleep if replica.asleep else replace_weights
        name = await change(server, way, source, version, fleet.model)
        room, most = fleet.max_len, tolerance
        await prove(server, fleet.wire, source, name, salt, max_len=room, tolerance=most)
    except GONE as error:
        fleet.replicas.failed(replica, error, at_once=True)
        return ""
    replica.proved, replica.asleep = version, 0
    fleet.replicas.revive(replica)
    return name


async def adopt(fleet: Fleet, held: Held, version: int) -> None:
    """Take servers that another process has brought weights to, and see that they say so.

    Raises:
        NoServer: none of them does.
    """
    fleet.model, fleet.version, fleet.synced = held.model, version, True
    await asyncio.gather(*(_look_at(fleet, r, held.servers) for r in fleet.replicas.every))
    fleet.replicas.require_one()


async def _look_at(fleet: Fleet, replica: Replica, proved: Sequence[str]) -> None:
    error: EngineError = ServerLost(f"{replica.server.url} was not given these weights")
    replica.proved = fleet.version if replica.server.url in proved else None
    try:
        if replica.proved is not None and await fleet.is_current(replica):
            return fleet.replicas.revive(replica)
    except EngineError as raised:
        error = raised
    fleet.replicas.failed(replica, error, at_once=True)


async def lay(fleet: Fleet, level: int) -> None:
    """Let every server that lives sleep once nothing is in flight; the gate stays closed.

    Raises:
        EngineError: a server is not asleep, or what is in flight does not end.
    """
    fleet.gate.clear()
    await fleet.until_quiet()
    await _all(_lay(fleet, replica, level) for replica in fleet.replicas.living)


async def _lay(fleet: Fleet, replica: Replica, level: int) -> None:
    replica.asleep = level  # also if its answer is lost
    try:
        await fall_asleep(replica.server, level)
    except GONE as error:
        fleet.replicas.failed(replica, error, at_once=True)


async def leave(fleet: Fleet) -> None:
    """Wake every server that sleeps and close every connection."""
    every = fleet.replicas.every
    await asyncio.gather(*map(_rouse, every), return_exceptions=True)
    for replica in every:
        await replica.server.close()


async def _rouse(replica: Replica) -> None:
    """Wake a server that gets no new weights, or say that it sleeps on."""
    if not replica.asleep:
        return
    why: object = "nothing was heard of it"
    try:
        await rouse(replica.server, forgotten=replica.asleep > 1, deadline_s=WAKE_S)
        replica.asleep = 0
    except EngineError as error:
        why = error
    finally:
        if replica.asleep:
            text = "%s may be asleep: POST /wake_up there, or restart it (%s)"
            log.warning(text, replica.server.url, why)


async def _all(each: Iterable[Awaitable[T]]) -> list[T]:
    """Let all of them end, then raise what the first of those that failed raised."""
    found = await asyncio.gather(*each, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return cast(list[T], found)
