"""New weights for a vLLM server, in the one order that is right, and the proof that they are there.

    pause, start, update, finish, reset the prefix cache, resume, probe

While a server is paused it queues what it is asked, so the probe comes after `resume`; the engine
holds its own requests back until the probe has passed. The probe is not optional: a server can
answer 200 to a reload that left it with neither the old nor the new weights, and one that forgot
to reset its cache goes on with keys and values of the old ones.

How weights travel is a function (`Way`); all three need the folder on a disk that trainer and
server share, and the server's development routes (VLLM_SERVER_DEV_MODE=1).
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnwise.agents.engines.base import EngineError, GenRequest, Sampling, ScoreRequest
from turnwise.agents.engines.client import Server, ServerRefused
from turnwise.agents.engines.sampling import uniforms
from turnwise.agents.engines.vllm_score import score
from turnwise.agents.engines.vllm_wire import Wire, output_of, version_name

Way = Callable[[Server, Path, int, str], Awaitable[str]]
"""(server, folder, version, its own model's name) -> the name of the model to ask for now."""

LORA_NAME = "turnwise-policy"
PROBE_TOKENS, PROBE_DRAWS = 320, 8
LAST_WORD_S = 10.0
"""For an answer of a server on which a change of weights has just failed."""
NO_VERSION = "failed"
"""What weights are called that a failed change has left."""
TOLERANCE = 0.02
"""Nats, mean: right for float32; bfloat16 needs about 0.1."""


class BadSync(EngineError):
    """The server does not compute what the trainer does: its weights or its cache are not right."""


@dataclass(frozen=True)
class SavedWeights:
    """What an engine is to hold from now on."""

    folder: Path
    """Written by `save_pretrained`: the model, or for `hot_lora` the adapter."""
    score: Callable[[Sequence[int]], Sequence[float]]
    """The trainer's own log-probabilities of ids[1:] at T = 1, nats."""
    vocab: int
    """Ids below this may be asked for."""


async def replace_weights(
    server: Server, way: Way, weights: SavedWeights, version: int, model: str
) -> str:
    """Bring new weights to a server and return the model's name; `prove` comes next.

    Raises:
        EngineError: some step failed, and what the server holds is not known.
    """
    await server.post("/pause?mode=keep&clear_cache=true", once=True)
    try:
        name = await way(server, weights.folder, version, model)
        await server.post("/reset_prefix_cache", once=True)
    except BaseException:
        await _let_go(server, "/resume")
        raise
    await server.post("/resume", once=True)
    return name


async def _let_go(server: Server, path: str, body: Any = None) -> None:
    """Leave a server fit for another change after one has failed, which is what is to be told."""
    with contextlib.suppress(EngineError):
        deadline_s = min(LAST_WORD_S, server.deadline_s)
        await server.post(path, body, once=True, deadline_s=deadline_s)


async def reload_folder(server: Server, folder: Path, version: int, model: str) -> str:
    """Let every worker read the folder again; needs no transfer backend."""
    where = {"weights_path": str(folder.resolve())}
    await server.post("/collective_rpc", {"method": "reload_weights", "kwargs": where}, once=True)
    await server.post("/update_weight_version", {"new_version": version_name(version)}, once=True)
    return model


async def four_phases(server: Server, folder: Path, version: int, model: str) -> str:
    """Use vLLM's own protocol, with the backend `safetensors_dir` of `worker/turnwise_worker.py`.

    The backend is told its root each time: a server that was restarted has forgotten it.
    """
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    root = {"init_info": {"root": str(folder.resolve())}}
    await server.post("/init_weight_transfer_engine", root, once=True)
    finish = {"weight_version": version_name(version)}
    try:
        await server.post("/start_weight_update", once=True)
        await server.post("/update_weights", {"update_info": {"files": files}}, once=True)
        await server.post("/finish_weight_update", finish, once=True)
    except BaseException:  # one that is left open makes every later change fail at its start
        await _let_go(server, "/finish_weight_update", {"weight_version": NO_VERSION})
        raise
    return model


async def hot_lora(server: Server, folder: Path, version: int, model: str) -> str:
    """Unload the last adapter and load this one; the server was started with --enable-lora.

    Not by `load_inplace`: vLLM 0.32 then reads the folder again at every forward pass, so that
    tokens are drawn by whatever the trainer is just writing there. A request in flight keeps the
    adapter that it began with; the engine waits for it.
    """
    await _unload(server)
    body = {"lora_name": LORA_NAME, "lora_path": str(folder.resolve())}
    await server.post("/v1/load_lora_adapter", body, once=True, text=True)
    await server.post("/update_weight_version", {"new_version": version_name(version)}, once=True)
    return LORA_NAME


async def _unload(server: Server) -> None:
    """Unload the adapter of an earlier version or run, if there is one."""
    try:
        await server.post("/v1/unload_lora_adapter", {"lora_name": LORA_NAME}, once=True, text=True)
    except ServerRefused as error:
        if error.status != 404:
            raise
        if "cannot be found" not in str(error):  # there is no such route
            raise EngineError(
                f"{server.url} takes no adapters: start it by `turnwise serve-policy --lora-rank "
                "N`, N that of the trainer, or let whole weights travel (engine_sync reload)"
            ) from error


async def prove(
    server: Server,
    wire: Wire,
    weights: SavedWeights,
    model: str,
    salt: str,
    *,
    max_len: int,
    tolerance: float,
) -> float:
    """Compare server and trainer on a fixed sequence, given and sampled; return the larger gap.

    The scores show wrong weights. The draws are made as every other request is, behind a prefix
    that was in the cache before, and show stale keys and values and a distribution that something
    else than the temperature has shaped.

    Args:
        tolerance: largest mean difference in nats. 0.02 is right for float32; bfloat16 against
            float32 gives up to 0.05 on a healthy server.

    Raises:
        BadSync: they differ by more.
    """
    length = max(2, min(PROBE_TOKENS, max_len - PROBE_DRAWS - 1))
    ids = probe_ids(weights.vocab, length)
    said = (await score(server, ScoreRequest(ids), model)).logprobs
    given = mean_gap(said, weights.score(ids))
    request = GenRequest("probe", ids, Sampling(PROBE_DRAWS), seed=0)
    answer = await server.post(wire.path, wire.body(request, model, PROBE_DRAWS, salt, {}))
    drawn = output_of(wire, answer, request, PROBE_DRAWS, 0, exact=True)
    own = weights.score([*ids, *drawn.token_ids])[length - 1 :]
    sampled = mean_gap(drawn.logprobs, own)
    if not max(given, sampled) <= tolerance:
        why = _diagnosis(given, tolerance)
        raise BadSync(
            f"{server.url} and the trainer differ by {given:.3g} nats on given tokens and "
            f"{sampled:.3g} on sampled ones (tolerance {tolerance:g}): {why}"
        )
    return max(given, sampled)


def _diagnosis(given: float, tolerance: float) -> str:
    if given > tolerance:
        return (
            "its weights are not those that were saved; on a CPU build set TURNWISE_NO_PREPACK=1 "
            "as `turnwise serve-policy` does, on a GPU compare dtypes"
        )
    return (
        "its weights are right and what it samples with is not: a stale prefix cache, or a "
        "distribution shaped by top-p, a penalty or a logits processor"
    )


def probe_ids(vocab: int, length: int) -> list[int]:
    """Return a fixed sequence of ids below `vocab`."""
    return [int(u * vocab) for u in uniforms([20_26] * length, range(length))]


def mean_gap(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the mean absolute difference of two equally long sequences."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)
