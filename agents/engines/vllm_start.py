"""What a vLLM server must be before anything is sampled from it; each refusal says what to change.

version      in the range that this client was written for
model        served here, with room for the longest episode
tokenizer    gives the ids that the trainer's gives
logprobs     after the temperature (processed), of a distribution that nothing else shapes; of two
             candidates a token at least
routes       those for weight updates, if weights will be updated; that of `GENERATE`
sleep        sleep mode, if it shares a GPU with the trainer
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from turnwise.agents.engines.base import (
    GenRequest,
    Sampling,
    ScoreOutput,
    ScoreRequest,
    ServerUnfit,
)
from turnwise.agents.engines.client import ProtocolError, Server, ServerRefused
from turnwise.agents.engines.vllm_score import score
from turnwise.agents.engines.vllm_sleep import sleeps_for_nothing
from turnwise.agents.engines.vllm_weights import PROBE_DRAWS, TOLERANCE, mean_gap
from turnwise.agents.engines.vllm_wire import COMPLETIONS, GENERATE, Wire, output_of

VERSIONS = ((0, 21), (0, 33))
"""First and last minor version, both included. 0.32 is what the contract tests ran against."""
KEY_VARIABLE = "TURNWISE_VLLM_API_KEY"
PROMPT = (1, 2, 3)
COLD = 0.1
"""vLLM takes temperatures up to 2 only; the other way there is room."""
PROBES = ("The cat sat.", " naïve 日本\n", '{"name": "look", "arguments": {"n": 12}}')


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
    sleep: bool = False
    """It is to give its memory back while the trainer learns."""
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
    if needs.sleep and (why := await sleeps_for_nothing(server)):
        raise ServerUnfit(why)
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
    """Hold draws at T = 1 against their scores, and margins at T = 0.1 against those at T = 1."""
    try:
        await _unshaped(server, wire, model, tolerance)
        await _processed(server, model)
    except ProtocolError as error:
        raise ServerUnfit(f"{server.url} does not answer as vLLM does: {error}") from error


async def _unshaped(server: Server, wire: Wire, model: str, tolerance: float) -> None:
    if (gap := await _gap(server, wire, model)) > tolerance:
        raise ServerUnfit(
            f"{server.url}: what was sampled at T = 1 has log-probabilities {gap:.2g} nats off "
            "its own scores: something shapes the distribution (a logits processor, or a top-p "
            "that cannot be turned off): serve the plain model; or these are no log-probabilities: "
            "start it with --logprobs-mode processed_logprobs; or it rounds to bfloat16: raise "
            f"--engine-tolerance above {tolerance:g}"
        )


async def _processed(server: Server, model: str) -> None:
    cold, warm = await _margins(server, model, COLD)
    if cold < 3 * warm:
        raise ServerUnfit(
            f"{server.url} gives log-probabilities before the temperature: start it with "
            "--logprobs-mode processed_logprobs"
        )


async def _gap(server: Server, wire: Wire, model: str) -> float:
    """Return by how much draws at T = 1 differ from their own scores, in mean nats."""
    request = GenRequest("start", list(PROMPT), Sampling(PROBE_DRAWS, 1.0), seed=1)
    body = wire.body(request, model, PROBE_DRAWS, uuid.uuid4().hex, {})
    answer = await _asked(server.post(wire.path, body))
    drawn = output_of(wire, answer, request, PROBE_DRAWS, 0, exact=True)
    scores = await _scores(server, model, drawn.token_ids)
    return mean_gap(drawn.logprobs, scores.logprobs)


async def _margins(server: Server, model: str, temperature: float) -> tuple[float, float]:
    """Return by how much the likeliest token leads the next one: drawn at `temperature`, scored.

    Sums over the same positions, nats. The temperature divides it, however sure a policy is or
    however little it knows; draws alone would tell nothing of one that is sure.
    """
    request = GenRequest("start", list(PROMPT), Sampling(PROBE_DRAWS, temperature), seed=1)
    body = COMPLETIONS.body(request, model, PROBE_DRAWS, uuid.uuid4().hex, {})
    try:
        answer = await _asked(server.post(COMPLETIONS.path, body | {"logprobs": 2}))
    except ServerRefused as error:
        if error.status != 400 or "logprobs" not in str(error):
            raise
        raise ServerUnfit(f"{error}; start it with --max-logprobs 2 or more") from error
    drawn = output_of(COMPLETIONS, answer, request, PROBE_DRAWS, 0, exact=True)
    rows = [row.values() for row in answer["choices"][0]["logprobs"]["top_logprobs"]]
    scores = await _scores(server, model, drawn.token_ids, topk=2)
    return _lead(rows), _lead(scores.topk_logprobs)


def _lead(rows: Iterable[Iterable[float]]) -> float:
    """Return the sum over rows of what the best has over the second."""
    best = [sorted(row, reverse=True)[:2] for row in rows]
    if any(len(two) < 2 for two in best):
        raise ProtocolError("/v1/completions: fewer than the two likeliest tokens were told")
    return sum(first - second for first, second in best)


async def _scores(server: Server, model: str, drawn: Sequence[int], topk: int = 0) -> ScoreOutput:
    request = ScoreRequest([*PROMPT, *drawn], start=len(PROMPT), topk=topk)
    return await score(server, request, model)


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
