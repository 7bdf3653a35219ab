"""What a vLLM server must be before anything is sampled from it; each refusal says what to change.

version      in the range that this client was written for
model        served here, with room for the longest episode
tokenizer    gives the ids that the trainer's gives
logprobs     after the temperature (processed), of a distribution that nothing else shapes
routes       those for weight updates, if weights will be updated; that of `GENERATE`
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Any

from turnwise.agents.engines.base import GenRequest, Sampling, ScoreRequest
from turnwise.agents.engines.client import ProtocolError, Server, ServerRefused
from turnwise.agents.engines.vllm_score import score
from turnwise.agents.engines.vllm_weights import PROBE_DRAWS, TOLERANCE, mean_gap
from turnwise.agents.engines.vllm_wire import GENERATE, Wire, output_of

VERSIONS = ((0, 21), (0, 33))
"""First and last minor version, both included. 0.32 is what the contract tests ran against."""
KEY_VARIABLE = "TURNWISE_VLLM_API_KEY"
PROBES = ("The cat sat.", " naïve 日本\n", '{"name": "look", "arguments": {"n": 12}}')


class ServerUnfit(ValueError):
    """The server cannot be trained with as it is; the message says what to change."""


@dataclass(frozen=True)
class Needs:
    """What the caller asks of a server."""

    model: str = ""
    """Served name; empty takes the first one."""
    max_len: int = 0
    """Tokens of the longest episode; 0 takes what the server has."""
    tokenizer: Any = None
    """Hugging Face tokenizer to compare with; None compares nothing."""
    updates: bool = False
    """Weights will be updated."""
    versions: tuple[tuple[int, int], tuple[int, int]] = VERSIONS


async def examine(
    server: Server, needs: Needs, wire: Wire, tolerance: float = TOLERANCE
) -> tuple[str, int]:
    """Return (model, longest sequence in tokens) of a server that is fit.

    Args:
        tolerance: mean nats by which two ways to compute the same may differ; see `prove`.

    Raises:
        ServerUnfit: it is not.
        EngineError: it cannot be reached.
    """
    await _version(server, needs)
    model, max_len = await _model(server, needs)
    if needs.updates:
        await _routes(server)
    if needs.tokenizer is not None:
        await _tokenizer(server, model, needs.tokenizer)
    await _logprobs(server, wire, model, tolerance)
    return model, max_len


async def _version(server: Server, needs: Needs) -> None:
    said = str((await _asked(server.get("/version"))).get("version", ""))
    found = re.match(r"(\d+)\.(\d+)", said)
    (low, high) = needs.versions
    if found is None or not low <= (int(found[1]), int(found[2])) <= high:
        raise ServerUnfit(
            f"{server.url} is vLLM {said or 'of no version'}, and this client knows "
            f"{_dotted(low)} to {_dotted(high)}: install one of these"
        )


async def _model(server: Server, needs: Needs) -> tuple[str, int]:
    data = (await _asked(server.get("/v1/models"))).get("data") or []
    served = {entry["id"]: int(entry["max_model_len"] or 0) for entry in data}
    if not served or needs.model not in ("", *served):
        raise ServerUnfit(
            f"{server.url} serves {sorted(served)}, not {needs.model!r}: name one of these, or "
            f"start it with --served-model-name {needs.model or 'policy'}"
        )
    model = needs.model or next(iter(served))
    if served[model] < needs.max_len:
        raise ServerUnfit(
            f"{server.url} takes {served[model]} tokens, and {needs.max_len} are needed: "
            f"start it with --max-model-len {needs.max_len}, or lower max_tokens"
        )
    return model, needs.max_len or served[model]


async def _routes(server: Server) -> None:
    try:
        await server.get("/weight_info")
    except ServerRefused as error:
        if error.status != 404:
            raise
        raise ServerUnfit(
            f"{server.url} has no routes for new weights: start it with VLLM_SERVER_DEV_MODE=1 in "
            "its environment, on an address that only the trainer reaches"
        ) from error


async def _tokenizer(server: Server, model: str, tokenizer: Any) -> None:
    for text in (*PROBES, "".join(getattr(tokenizer, "all_special_tokens", ()))):
        mine = list(tokenizer.encode(text, add_special_tokens=False))
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        theirs = (await _asked(server.post("/tokenize", body))).get("tokens")
        if theirs != mine:
            raise ServerUnfit(
                f"{server.url} has another tokenizer: {text!r} is {theirs} there and {mine} here; "
                "serve the folder that the trainer starts from"
            )


async def _logprobs(server: Server, wire: Wire, model: str, tolerance: float) -> None:
    """Sample at three temperatures and score all at T = 1: equal, and then different.

    A policy that is sure draws alike at T = 0.1 and 1, and one that knows nothing at 1 and 100.
    """
    try:
        warm = await _gap(server, wire, model, 1.0)
        other = max([await _gap(server, wire, model, at) for at in (0.1, 100.0)])
    except ProtocolError as error:
        raise ServerUnfit(f"{server.url} does not answer as vLLM does: {error}") from error
    if warm > tolerance:
        raise ServerUnfit(
            f"{server.url}: what was sampled at T = 1 has log-probabilities {warm:.2g} nats off "
            "its own scores: something shapes the distribution (a logits processor, or a top-p "
            "that cannot be turned off): serve the plain model; or these are no log-probabilities: "
            "start it with --logprobs-mode processed_logprobs; or it rounds to bfloat16: raise "
            f"--engine-tolerance above {tolerance:g}"
        )
    if other < max(1e-2, 3 * warm):
        raise ServerUnfit(
            f"{server.url} gives log-probabilities before the temperature: start it with "
            "--logprobs-mode processed_logprobs"
        )


async def _gap(server: Server, wire: Wire, model: str, temperature: float) -> float:
    """Return by how much draws differ from their own scores at T = 1, in mean nats."""
    request = GenRequest("start", [1, 2, 3], Sampling(PROBE_DRAWS, temperature), seed=1)
    salt = uuid.uuid4().hex  # nothing that an earlier client left in the cache is to be looked at
    body = wire.body(request, model, PROBE_DRAWS, salt, {})
    answer = await _asked(server.post(wire.path, body))
    drawn = output_of(wire, answer, request, PROBE_DRAWS, 0, exact=True)
    ids = [*request.token_ids, *drawn.token_ids]
    scores = await score(server, ScoreRequest(ids, start=len(request.token_ids)), model)
    return mean_gap(drawn.logprobs, scores.logprobs)


async def _asked(call: Any) -> Any:
    """Await a call and turn what the user can mend into `ServerUnfit`."""
    try:
        return await call
    except ServerRefused as error:
        if error.status == 401:
            raise ServerUnfit(f"{error}; put the server's --api-key into {KEY_VARIABLE}") from error
        if error.status == 403:
            raise ServerUnfit(
                f"{error}; start it with --enable-scale-out, or use the route /v1/completions "
                f"instead of {GENERATE.path}"
            ) from error
        if error.status == 404:
            raise ServerUnfit(f"{error}; is this a vLLM server?") from error
        raise


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
