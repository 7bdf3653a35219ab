"""How a request is put to vLLM and how its answer is read: token ids in, token ids out.

Two routes do it. `COMPLETIONS` needs no flag; `GENERATE` needs `--enable-scale-out` and tells which
policy version drew which token. Whatever would shape the distribution is sent explicitly, since a
server takes what is left out from the model's generation_config.json.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from turnwise.agents.engines.base import Finish, GenOutput, GenRequest
from turnwise.agents.engines.client import ProtocolError

PLAIN: Mapping[str, Any] = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Nothing but the temperature shapes the distribution."""


@dataclass(frozen=True)
class Wire:
    """One route."""

    path: str
    body: Callable[[GenRequest, str, int, str, Mapping[str, Any]], dict[str, Any]]
    """(request, model, max_tokens, cache_salt, what shapes the distribution) -> JSON."""
    read: Callable[[Any, GenRequest], tuple[list[int], list[float], str | None, list[Any]]]
    """(answer, request) -> token ids, logprobs, finish reason, version spans."""
    spans: bool
    """Whether the answer says which version drew which token."""


def output_of(
    wire: Wire, answer: Any, request: GenRequest, max_tokens: int, version: int, *, exact: bool
) -> GenOutput:
    """Check an answer against its request and return what was sampled.

    Raises:
        ProtocolError: echoed prompt, counts, log-probabilities, length or spans are not right.
    """
    try:
        ids, logprobs, reason, spans = wire.read(answer, request)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(
            f"{wire.path}: the answer lacks a field or has another shape ({error!r}); this client "
            "speaks to vLLM 0.21 to 0.33"
        ) from error
    _check(wire, ids, logprobs, max_tokens)
    finish = _finish(wire, ids, reason, request, max_tokens)
    spans = _spans(wire, spans, len(ids)) if wire.spans else [(version, 0, len(ids))]
    return GenOutput(request.session, tuple(ids), tuple(logprobs), finish, tuple(spans), exact)


def _check(wire: Wire, ids: list[int], logprobs: list[float], max_tokens: int) -> None:
    if len(ids) != len(logprobs):
        raise ProtocolError(
            f"{wire.path}: {len(ids)} tokens came with {len(logprobs)} log-probabilities"
        )
    if not 0 < len(ids) <= max_tokens:
        raise ProtocolError(f"{wire.path}: asked for 1 to {max_tokens} tokens and got {len(ids)}")
    if not all(math.isfinite(logprob) and logprob < 1e-4 for logprob in logprobs):
        raise ProtocolError(
            f"{wire.path}: a log-probability is not a number of at most 0: start the server with "
            "--logprobs-mode processed_logprobs"
        )


def _finish(
    wire: Wire, ids: list[int], reason: str | None, request: GenRequest, max_tokens: int
) -> Finish:
    """Return why it ended, by the tokens themselves, where the server agrees."""
    stops = request.sampling.stop_ids
    if any(token in stops for token in ids[:-1]):
        raise ProtocolError(f"{wire.path}: it went on after one of the stop tokens {list(stops)}")
    if ids[-1] in stops and (reason == "stop" or (reason == "length" and len(ids) == max_tokens)):
        return "stop"
    if reason == "length" and len(ids) == max_tokens:
        return "length"
    if reason == "length":
        raise ProtocolError(
            f"{wire.path}: the server cut the answer to {len(ids)} of {max_tokens} tokens without "
            "saying so: its --max-model-len is less than what it told at the start; restart both"
        )
    if reason == "abort":
        raise ProtocolError(f"{wire.path}: somebody else aborted the request")
    raise ProtocolError(
        f"{wire.path}: it ended by {reason!r} after token {ids[-1]}, and the stop tokens are "
        f"{list(stops)}"
    )


def _spans(wire: Wire, spans: list[Any], length: int) -> list[tuple[int, int, int]]:
    """Return spans without gaps, equal neighbours merged."""
    merged: list[tuple[int, int, int]] = []
    for version, start, end in spans:
        number = version_number(version)
        if (merged and merged[-1][2] != start) or (not merged and start != 0) or end < start:
            raise ProtocolError(f"{wire.path}: the version spans have a gap: {spans}")
        if merged and merged[-1][0] == number:
            merged[-1] = (number, merged[-1][1], end)
        elif end > start:
            merged.append((number, start, end))
    if not merged or merged[-1][2] != length:
        raise ProtocolError(f"{wire.path}: the version spans {spans} do not cover {length} tokens")
    return merged


def version_name(version: int) -> str:
    """Return what the server calls a policy version."""
    return f"step-{version}"


def version_number(name: Any) -> int:
    """Return the policy version that a server names; 0 for the weights it was started with."""
    head, _, number = str(name).partition("-")
    return int(number) if head == "step" and number.isdigit() else 0


def _shared(request: GenRequest, max_tokens: int, shaping: Mapping[str, Any]) -> dict[str, Any]:
    sampling = request.sampling
    return {
        **PLAIN,
        **shaping,
        "max_tokens": max_tokens,
        "temperature": sampling.temperature,
        "seed": request.seed,
        "stop_token_ids": list(sampling.stop_ids),
        "ignore_eos": True,  # it ends where the request says, and the renderer names the EOS too
        "skip_special_tokens": False,
        "logprobs": 0,
    }


def _completions_body(
    request: GenRequest, model: str, max_tokens: int, salt: str, shaping: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        **_shared(request, max_tokens, shaping),
        "model": model,
        "prompt": list(request.token_ids),
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "cache_salt": salt,
    }


def _completions_read(
    answer: Any, request: GenRequest
) -> tuple[list[int], list[float], str | None, list[Any]]:
    (choice,) = answer["choices"]
    if choice["prompt_token_ids"] != list(request.token_ids):
        raise ProtocolError("/v1/completions: the server read another prompt than was sent")
    ids, said = choice["token_ids"], choice["logprobs"]
    if said["tokens"] != [f"token_id:{token}" for token in ids]:
        raise ProtocolError("/v1/completions: the log-probabilities are those of other tokens")
    return ids, said["token_logprobs"], choice["finish_reason"], []


def _generate_body(
    request: GenRequest, model: str, max_tokens: int, salt: str, shaping: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "model": model,
        "token_ids": list(request.token_ids),
        "cache_salt": salt,
        # output_kind 2 is FINAL_ONLY: one answer with all tokens.
        "sampling_params": {**_shared(request, max_tokens, shaping), "output_kind": 2},
    }


def _generate_read(
    answer: Any, request: GenRequest
) -> tuple[list[int], list[float], str | None, list[Any]]:
    (choice,) = answer["choices"]
    if answer["usage"]["prompt_tokens"] != len(request.token_ids):
        raise ProtocolError("/inference/v1/generate: the server read another prompt than was sent")
    ids, content = choice["token_ids"], choice["logprobs"]["content"]
    if [entry["token_id"] for entry in content] != ids:
        raise ProtocolError("/inference/v1/generate: the log-probabilities are of other tokens")
    spans = [(span["version"], span["start"], span["end"]) for span in choice["weight_versions"]]
    return ids, [entry["logprob"] for entry in content], choice["finish_reason"], spans


COMPLETIONS = Wire("/v1/completions", _completions_body, _completions_read, spans=False)
GENERATE = Wire("/inference/v1/generate", _generate_body, _generate_read, spans=True)
