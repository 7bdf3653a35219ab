"""A vLLM server that shares its GPU with the trainer: asleep while the trainer learns.

    drained -> sleep(level), the learner's step,
    wake the weights, new weights, reset the prefix cache, wake the keys and values, probe

Level 1 moves the weights to main memory, level 2 forgets them; either frees keys and values. A
server that sleeps accepts requests and answers them once it is awake. Waking the last part of its
memory lifts the pause by itself, so that the cache is reset before.

Whether memory is given back shows on a GPU alone: a CPU build takes the calls, holds its requests
back and frees nothing.
"""

from __future__ import annotations

import contextlib
from typing import Any

from turnwise.agents.engines.base import EngineError
from turnwise.agents.engines.client import ProtocolError, Server, ServerRefused
from turnwise.agents.engines.vllm_weights import SavedWeights, Way
from turnwise.agents.faults import log

WAKE_S = 120.0
"""For each answer of a server that is woken at the end of a run."""
OWN = "default"
"""What vLLM calls the weights that a server was started with."""
HOW = (
    "start it by `turnwise serve-policy --colocated`, or let it have a GPU of its own and set "
    "engine_sleep 0"
)


class SleepFailed(EngineError):
    """A server does not sleep, or does not wake, as it says."""


async def is_asleep(server: Server) -> bool:
    """Return whether any of its memory sleeps, or it is paused.

    Raises:
        ServerRefused: with status 404, it has no such route.
    """
    return bool((await server.get("/is_sleeping")).get("is_sleeping"))


async def sleeps_for_nothing(server: Server) -> str:
    """Return why the server could not give its memory back, or an empty text."""
    try:
        await is_asleep(server)
    except ServerRefused as error:
        if error.status != 404:
            raise
        return f"{server.url} has no routes to sleep: {HOW}"
    if await _frees(server):
        return ""
    return f"{server.url} was started without --enable-sleep-mode, and would free nothing: {HOW}"


async def _frees(server: Server) -> bool:
    """Return whether sleep mode is on; also where a CPU has nothing to free, or nothing is told."""
    try:
        told: Any = (await server.get("/server_info?config_format=json")).get("vllm_config")
    except ServerRefused:
        return True
    if not isinstance(told, dict) or "enable_sleep_mode" not in told.get("model_config", {}):
        return True
    on_cpu = str(told.get("device_config", {}).get("device")) == "cpu"
    return on_cpu or bool(told["model_config"]["enable_sleep_mode"])


async def fall_asleep(server: Server, level: int) -> None:
    """Let a server that is drained sleep.

    Raises:
        SleepFailed: it says that it does, and is awake.
        EngineError: it is lost, late or refuses; whether it sleeps is not known.
    """
    await server.post(f"/sleep?level={level}&mode=wait", once=True)
    if not await is_asleep(server):
        raise SleepFailed(f"{server.url} is awake after /sleep: {HOW}")


async def replace_weights_asleep(
    server: Server, way: Way, weights: SavedWeights, version: int, model: str
) -> str:
    """Wake a server with new weights and return the model's name; `prove` comes next.

    Raises:
        EngineError: some step failed. What it holds, and whether it sleeps, is not known.
    """
    await server.post("/wake_up?tags=weights", once=True)
    name = await way(server, weights.folder, version, model)
    await server.post("/reset_prefix_cache", once=True)
    await server.post("/wake_up?tags=kv_cache", once=True)
    if await is_asleep(server):
        raise SleepFailed(f"{server.url} still sleeps after /wake_up: restart it")
    return name


async def rouse(server: Server, *, forgotten: bool, deadline_s: float | None = None) -> None:
    """Wake a server that is to be given no weights now.

    Args:
        forgotten: its weights may be lost (level 2): it reads those that it was started with again
            before it answers anything.
        deadline_s: for each answer; by default the server's.

    Raises:
        EngineError: it cannot be woken.
    """
    await server.post("/wake_up?tags=weights", once=True, deadline_s=deadline_s)
    if forgotten:
        # By name: without one vLLM reads the folder that it was last sent to, which may be gone.
        where = {"weights_path": await started_with(server)}
        again = {"method": "reload_weights", "kwargs": where}
        await server.post("/collective_rpc", again, once=True, deadline_s=deadline_s)
        stamp = {"new_version": OWN}
        await server.post("/update_weight_version", stamp, once=True, deadline_s=deadline_s)
    await server.post("/reset_prefix_cache", once=True, deadline_s=deadline_s)
    await server.post("/wake_up", once=True, deadline_s=deadline_s)
    if await is_asleep(server):
        raise SleepFailed(f"{server.url} still sleeps after /wake_up: restart it")


async def started_with(server: Server) -> str:
    """Return the folder or name of the model that the server was started with."""
    served = (await server.get("/v1/models")).get("data") or []
    roots = [entry.get("root") for entry in served if not entry.get("parent")]
    if not roots or not roots[0]:
        raise ProtocolError(f"{server.url}/v1/models does not tell what it was started with")
    return str(roots[0])


async def rouse_left_asleep(server: Server) -> None:
    """Wake a server that an earlier run has left asleep or paused; at which level is not known.

    Raises:
        EngineError: it cannot be reached, or cannot be woken.
    """
    asleep = False
    with contextlib.suppress(ServerRefused):  # without the route it has never slept
        asleep = await is_asleep(server)
    if asleep:
        log.warning("%s was left asleep; it is woken with the weights of its start", server.url)
        await rouse(server, forgotten=True)
