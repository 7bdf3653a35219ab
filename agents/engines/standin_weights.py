"""The stand-in's development routes: pause, new weights by three ways, the prefix cache.

As on vLLM, an update that was not started fails with status 500, and no update resets the cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnwise.agents.engines.standin_generate import Refusal

if TYPE_CHECKING:
    from turnwise.agents.engines.standin import StandIn

Body = Mapping[str, Any]


async def pause(app: StandIn, body: Body) -> dict[str, Any]:
    """Let nothing more be drawn; by default forget the cache, whatever the mode."""
    if body.get("mode", "abort") != "keep":
        raise Refusal(400, "the stand-in pauses with mode=keep")
    app.served.resumed.clear()
    if body.get("clear_cache", "true") == "true":
        app.served.reset()
    return {"status": "paused"}


async def resume(app: StandIn, body: Body) -> dict[str, Any]:
    """Go on."""
    require_awake(app, "weights", "kv_cache")
    app.served.resume()
    return {"status": "resumed"}


async def is_paused(app: StandIn, body: Body) -> dict[str, Any]:
    """Say whether it is paused."""
    return {"is_paused": not app.served.resumed.is_set()}


async def initialise(app: StandIn, body: Body) -> dict[str, Any]:
    """Remember the root below which files are named."""
    app.root = Path(body["init_info"]["root"])
    return {"message": "Weight transfer initialized"}


async def start(app: StandIn, body: Body) -> dict[str, Any]:
    """Begin an update."""
    if app.updating:
        raise Refusal(500, "start_weight_update called while a weight update is already active.")
    app.updating = True
    return {"message": "Weight update started"}


async def update(app: StandIn, body: Body) -> dict[str, Any]:
    """Load files, and reset nothing."""
    if not app.updating or app.root is None:
        raise Refusal(500, "start_weight_update must be called before update_weights.")
    require_awake(app, "weights")
    app.served.change([app.root / name for name in body["update_info"]["files"]])
    return {"message": "Weights updated"}


async def finish(app: StandIn, body: Body) -> dict[str, Any]:
    """End the update and name what is there now."""
    if not app.updating:
        raise Refusal(500, "finish_weight_update called without a matching start_weight_update.")
    app.updating = False
    app.served.stamp(body.get("weight_version") or "default")
    return {"message": "Weight update finished"}


async def collective_rpc(app: StandIn, body: Body) -> dict[str, Any]:
    """Reload the weights from a folder, or those of the start, and reset nothing."""
    if body.get("method") != "reload_weights":
        raise Refusal(500, f"the stand-in has no method {body.get('method')!r}")
    require_awake(app, "weights")
    if body["kwargs"]["weights_path"] == app.settings.root:
        app.served.base.model.load_state_dict(app.own)
        return {"results": [None]}
    folder = Path(body["kwargs"]["weights_path"])
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise Refusal(500, f"Cannot find any model weights with `{folder}`")
    app.served.change(files)
    return {"results": [None]}


async def name_version(app: StandIn, body: Body) -> dict[str, Any]:
    """Name the weights."""
    app.served.stamp(body["new_version"])
    return {"success": True, "new_version": body["new_version"]}


async def weight_info(app: StandIn, body: Body) -> dict[str, Any]:
    """Return the name of the weights."""
    return {"weight_version": app.served.versions[-1]}


async def reset_prefix_cache(app: StandIn, body: Body) -> dict[str, Any]:
    """Forget keys and values."""
    app.served.reset()
    return {"success": True}


async def load_lora(app: StandIn, body: Body) -> str:
    """Load an adapter under a name; the same name again needs `load_inplace`.

    One that was loaded in place is read again before every forward pass.
    """
    name, folder, again = body["lora_name"], Path(body["lora_path"]), bool(body.get("load_inplace"))
    _takes_adapters(app)
    if name in app.served.adapters and not again:
        raise Refusal(400, f"The lora adapter '{name}' has already been loaded.")
    if not (config := folder / "adapter_config.json").exists():
        raise Refusal(404, f"Loading lora {name} failed: No adapter found for {folder}")
    require_awake(app, "weights")
    rank, most = json.loads(config.read_text())["r"], app.settings.max_lora_rank
    if rank > most:
        raise Refusal(500, f"LoRA rank {rank} is greater than max_lora_rank {most}.")
    app.served.adapt(name, folder, again=again)
    return f"Success: LoRA adapter '{name}' added successfully."


async def unload_lora(app: StandIn, body: Body) -> str:
    """Forget the name of an adapter; what is being drawn by it goes on."""
    name = body["lora_name"]
    _takes_adapters(app)
    if name not in app.served.adapters:
        raise Refusal(404, f"The lora adapter '{name}' cannot be found.")
    app.served.retire(name)
    return f"Success: LoRA adapter '{name}' removed successfully."


def require_awake(app: StandIn, *tags: str) -> None:
    """Refuse what needs memory that sleeps; a GPU's server dies of it."""
    if asleep := app.asleep & {*tags}:
        raise Refusal(500, f"an illegal memory access was encountered: {sorted(asleep)} sleeps")


def _takes_adapters(app: StandIn) -> None:
    if not app.settings.max_lora_rank:
        raise Refusal(404, "Not Found")
