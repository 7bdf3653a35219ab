"""The stand-in's routes that take token ids: `/v1/completions` and `/inference/v1/generate`.

With what was measured on vLLM 0.32: answers are cut to the context without a word; scores of the
prompt are those of T = 1 in every mode, keyed by ids as text, the first one null, the token itself
always among them; top-p and top-k inflate log-probabilities in processed mode.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from turnwise.agents.engines.base import GenOutput, Sampling
from turnwise.agents.engines.standin_model import Shape, Weights

if TYPE_CHECKING:
    from turnwise.agents.engines.standin import StandIn


class Refusal(Exception):
    """An error answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def completions(app: StandIn, body: Mapping[str, Any]) -> dict[str, Any]:
    """Answer `POST /v1/completions` for one prompt of token ids and n = 1."""
    which, ids = app.weights(body), app.prompt(body, "prompt")
    k = body.get("prompt_logprobs")
    if k is not None:
        check_logprobs(app, k)
    output, stop = await generate(app, which, ids, body, str(body.get("cache_salt")))
    choice = {
        "index": 0,
        "text": app.text(output.token_ids),
        "logprobs": None
        if body.get("logprobs") is None
        else _flat(app, output, body, candidates(app, which, ids, output, body)),
        "finish_reason": output.finish,
        "stop_reason": stop,
        "token_ids": list(output.token_ids) if body.get("return_token_ids") else None,
        "prompt_token_ids": ids if body.get("return_token_ids") else None,
        "prompt_logprobs": None if k is None else prompt_logprobs(app, which, ids, k),
    }
    return {
        "id": "cmpl-standin",
        "object": "text_completion",
        "model": body.get("model", app.settings.served),
        "choices": [choice],
        "usage": _usage(ids, output),
    }


async def scale_out(app: StandIn, body: Mapping[str, Any]) -> dict[str, Any]:
    """Answer `POST /inference/v1/generate`."""
    if not app.settings.scale_out:
        raise Refusal(
            403,
            "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to "
            "enable them.",
        )
    which, ids, asked = app.weights(body), app.prompt(body, "token_ids"), body["sampling_params"]
    if asked.get("max_tokens") == 0:
        raise Refusal(400, "max_tokens must be at least 1, got 0.")
    output, stop = await generate(app, which, ids, asked, str(body.get("cache_salt")))
    content: list[dict[str, Any]] = [
        {"token_id": token, "logprob": logprob, "rank": None, "top_logprobs": []}
        for token, logprob in zip(output.token_ids, output.logprobs, strict=True)
    ]
    names = app.served.versions
    spans = [{"version": names[v], "start": start, "end": end} for v, start, end in output.versions]
    choice = {
        "index": 0,
        "finish_reason": output.finish,
        "stop_reason": stop,
        "token_ids": list(output.token_ids),
        "weight_versions": spans,
        "logprobs": {"content": content} if asked.get("logprobs") is not None else None,
    }
    return {
        "request_id": "generate-tokens-standin",
        "choices": [choice],
        "usage": _usage(ids, output),
    }


async def generate(
    app: StandIn, which: Weights, ids: list[int], asked: Mapping[str, Any], salt: str
) -> tuple[GenOutput, int | None]:
    """Return what was drawn and vLLM's `stop_reason`: the stop token, null for the EOS."""
    if asked.get("n", 1) != 1 or asked.get("echo"):
        raise Refusal(400, "the stand-in answers n = 1 without echo")
    check_logprobs(app, asked.get("logprobs") or 0)
    stops = tuple(asked.get("stop_token_ids") or ())
    eos = () if asked.get("ignore_eos") or app.eos is None else (app.eos,)
    room = app.settings.max_model_len - len(ids)
    temperature = float(asked.get("temperature", 1.0))
    if not 0 <= temperature <= 2:
        raise Refusal(
            400,
            f"temperature must be in [0, 2], got {temperature}. (parameter=temperature, "
            f"value={temperature})",
        )
    sampling = Sampling(min(asked.get("max_tokens", 16), room), temperature, (*stops, *eos))
    seed = asked.get("seed")
    seed = random.getrandbits(62) if seed is None else seed
    shape = Shape.of({**app.settings.defaults, **asked})
    if shape.plain:
        output = await app.served.draw(which, ids, sampling, seed, salt)
    else:
        output = await app.served.draw_shaped(which, ids, sampling, seed, shape)
    stop = (
        output.token_ids[-1] if output.finish == "stop" and output.token_ids[-1] in stops else None
    )
    return _raw(app, which, ids, output), stop


def _raw(app: StandIn, which: Weights, ids: list[int], output: GenOutput) -> GenOutput:
    """Return the output with the log-probabilities of the server's mode."""
    if app.settings.processed and not app.settings.logits:
        return output
    raw = app.served.chosen(which, ids, output.token_ids, normed=not app.settings.logits)
    return GenOutput(output.session, output.token_ids, raw, output.finish, output.versions)


def check_logprobs(app: StandIn, k: int) -> None:
    """Refuse more candidates per token than the server is set to give."""
    if k > (most := app.settings.max_logprobs):
        raise Refusal(
            400, f"Requested prompt logprobs of {k}, which is greater than max allowed: {most}"
        )


def prompt_logprobs(
    app: StandIn, which: Weights, ids: Sequence[int], k: int
) -> list[dict[str, Any] | None]:
    """Return one entry per token, the first null: k candidates, and the token itself."""
    logprobs = app.served.logits(which, ids)[:-1].log_softmax(-1)
    own = logprobs.gather(-1, torch.tensor(list(ids)[1:], dtype=torch.int64)[:, None])
    ranks = (logprobs >= own).sum(-1).tolist()
    best = logprobs.topk(k, -1)
    rows: list[dict[str, Any] | None] = [None]
    for i, token in enumerate(ids[1:]):
        row = {str(token): {"logprob": own[i].item(), "rank": ranks[i], "decoded_token": ""}}
        found = zip(best.indices[i].tolist(), best.values[i].tolist(), strict=True)
        for rank, (other, logprob) in enumerate(found, 1):
            row[str(other)] = {"logprob": logprob, "rank": rank, "decoded_token": ""}
        rows.append(row)
    return rows


def candidates(
    app: StandIn, which: Weights, ids: list[int], output: GenOutput, asked: Mapping[str, Any]
) -> list[dict[int, float]]:
    """Return by token the likeliest ones at each position, as the server's mode counts them."""
    if not asked.get("logprobs"):
        return [{} for _ in output.token_ids]
    shape = Shape.of({**app.settings.defaults, **asked})
    scale, k = float(asked.get("temperature", 1.0)) or 1.0, asked["logprobs"]
    logits = app.served.logits(which, [*ids, *output.token_ids])[len(ids) - 1 : -1]
    if app.settings.processed:
        rows = [shape.penalised(row, ids, output.token_ids[:i]) for i, row in enumerate(logits)]
        logits = torch.stack([shape.kept(row / scale) for row in rows])
    best = (logits if app.settings.logits else logits.log_softmax(-1)).topk(k, -1)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [dict(zip(tokens, values, strict=True)) for tokens, values in pairs]


def _flat(
    app: StandIn, output: GenOutput, body: Mapping[str, Any], best: Sequence[Mapping[int, float]]
) -> dict[str, Any]:
    def name(token: int) -> str:
        return f"token_id:{token}" if body.get("return_tokens_as_token_ids") else app.text([token])

    logprobs = list(output.logprobs)
    rows = [
        {name(token): logprob} | {name(other): found for other, found in row.items()}
        for token, logprob, row in zip(output.token_ids, logprobs, best, strict=True)
    ]
    return {
        "tokens": [name(token) for token in output.token_ids],
        "token_logprobs": logprobs,
        "top_logprobs": rows,
        "text_offset": [0] * len(rows),
    }


def _usage(ids: Sequence[int], output: GenOutput) -> dict[str, int]:
    prompt, new = len(ids), len(output.token_ids)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
