"""The stand-in's routes to sleep and to wake up, as vLLM 0.32 has them.

Asleep it takes requests and answers them once it is awake. Waking the last part of its memory lifts
any pause; until then what needs the part is refused here, where a GPU's server dies of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from turnwise.agents.engines.standin_generate import Refusal

if TYPE_CHECKING:
    from turnwise.agents.engines.standin import StandIn

Body = Mapping[str, Any]
PARTS = frozenset({"weights", "kv_cache"})


async def sleep(app: StandIn, body: Body) -> dict[str, Any]:
    """End what is being drawn, free keys and values, and at level 2 lose the weights."""
    level = int(body.get("level", 1))
    if not 0 <= level <= 2:
        raise Refusal(400, f"level must be in [0, 2], got {level}")
    if body.get("mode", "abort") != "wait":
        raise Refusal(400, "the stand-in sleeps with mode=wait")
    await app.served.drain()
    if level:
        app.served.reset()
        app.asleep |= PARTS
    if level == 2 and app.settings.sleep_mode:
        app.served.lose()
    return {"status": "sleeping", "level": level}


async def wake_up(app: StandIn, body: Body) -> dict[str, Any]:
    """Wake one part, or all; go on when nothing sleeps any more."""
    tags = [body["tags"]] if "tags" in body else None
    app.asleep -= PARTS if tags is None else {*tags}
    if not app.asleep:
        app.served.resume()
    return {"status": "sleeping" if app.asleep else "awake", "tags": tags}


async def is_sleeping(app: StandIn, body: Body) -> dict[str, Any]:
    """Say whether a part sleeps, or it is paused."""
    return {"is_sleeping": bool(app.asleep) or not app.served.resumed.is_set()}


async def server_info(app: StandIn, body: Body) -> dict[str, Any]:
    """Say how it was started; as text unless JSON is asked for."""
    if body.get("config_format") != "json":
        return {"vllm_config": f"device_config={app.settings.device}"}
    mode = {"enable_sleep_mode": app.settings.sleep_mode}
    return {"vllm_config": {"model_config": mode, "device_config": {"device": app.settings.device}}}
