"""Scoring given tokens with vLLM: `prompt_logprobs` of a request whose one new token is dropped.

The server gives log-probabilities at T = 1 over the full vocabulary, whatever its mode and whatever
temperature is asked for (vLLM #47680); those of another temperature follow from the full vocabulary
alone, so another temperature is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from turnwise.agents.engines.base import PromptTooLong, ScoreOutput, ScoreRequest
from turnwise.agents.engines.client import ProtocolError, Server, ServerRefused


class CannotScore(ValueError):
    """The server cannot give these scores; the message says which it can."""


def check_scorable(request: ScoreRequest, max_len: int) -> None:
    """Refuse what vLLM would answer with other numbers than those asked for.

    Raises:
        CannotScore: the temperature is not 1.
        PromptTooLong: more than `max_len` - 1 tokens (one is sampled behind them), or no token
            before `start`.
    """
    if request.temperature != 1.0:
        raise CannotScore(
            f"vLLM scores at temperature 1 only, and {request.temperature:g} was asked for: sample "
            "at T = 1, or score with a teacher in this process"
        )
    if not 0 < request.start < len(request.token_ids) < max_len:
        raise PromptTooLong(
            f"{len(request.token_ids)} tokens from {request.start} on cannot be scored: start is 1 "
            f"or more and below the length, which is at most {max_len - 1} on this server"
        )


async def score(server: Server, request: ScoreRequest, model: str) -> ScoreOutput:
    """Return the scores of one request that `check_scorable` lets pass.

    Raises:
        CannotScore: more candidates per token than the server's --max-logprobs.
        ProtocolError: the answer has another shape, or other tokens.
        EngineError: as `Server.post`.
    """
    body = {
        "model": model,
        "prompt": list(request.token_ids),
        "max_tokens": 1,
        "temperature": 1.0,
        "prompt_logprobs": request.topk,
        "return_token_ids": True,
    }
    try:
        answer = await server.post("/v1/completions", body, told=True)
    except ServerRefused as error:
        if error.status == 400 and "logprobs" in str(error):
            raise CannotScore(
                f"{error}; start the server with --max-logprobs {request.topk} or ask for fewer"
            ) from error
        raise
    try:
        (choice,) = answer["choices"]
        if choice["prompt_token_ids"] != list(request.token_ids):
            raise ProtocolError("/v1/completions: the server scored other tokens than were sent")
        return _read(choice["prompt_logprobs"], request)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(
            f"/v1/completions: the scores have another shape ({error!r})"
        ) from error


def _read(rows: Sequence[Mapping[str, Any] | None], request: ScoreRequest) -> ScoreOutput:
    """Return what the rows say: row i is about token i, keys are ids as text, row 0 is null."""
    if len(rows) != len(request.token_ids) or rows[0] is not None:
        raise ProtocolError(
            f"/v1/completions: {len(rows)} rows of scores for {len(request.token_ids)} tokens"
        )
    wanted = list(zip(rows[request.start :], request.token_ids[request.start :], strict=True))
    chosen = tuple(float(row[str(token)]["logprob"]) for row, token in wanted if row is not None)
    if len(chosen) != len(wanted):
        raise ProtocolError("/v1/completions: a token has no score")
    if not all(math.isfinite(logprob) and logprob < 1e-4 for logprob in chosen):
        raise ProtocolError("/v1/completions: a score is not a log-probability of at most 0")
    if not request.topk:
        return ScoreOutput(chosen)
    best = [_best(row or {}, request.topk) for row, _ in wanted]
    return ScoreOutput(
        chosen,
        tuple(tuple(int(token) for token, _ in row) for row in best),
        tuple(tuple(float(entry["logprob"]) for _, entry in row) for row in best),
    )


def _best(row: Mapping[str, Any], k: int) -> list[tuple[str, Any]]:
    """Return the k likeliest; the token itself is one entry more where it is not among them."""
    if len(row) not in (k, k + 1):
        raise ProtocolError(f"/v1/completions: {len(row)} candidates, expected {k} or {k + 1}")
    return sorted(row.items(), key=lambda item: (item[1]["rank"], -item[1]["logprob"]))[:k]


def tail_mass(topk_logprobs: Sequence[float]) -> float:
    """Return the probability of all tokens that are not among the top k: 1 - sum exp."""
    return max(0.0, 1.0 - math.fsum(map(math.exp, topk_logprobs)))
