"""The client and the stand-in against what vLLM 0.32 really answered, and against its own list of
routes. A change of either that a real server would not understand is seen here, without one.

`vllm_0_32.json` holds answers of a real server (the scores cut to their first four tokens) and, of
its OpenAPI document, the routes with the names that their bodies may have.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import parse_qs

import httpx
import pytest
from servers import draw, engine_on, inside, small, standin

from turnwise.agents.engines.base import GenRequest, Sampling, ScoreRequest, ServerUnfit
from turnwise.agents.engines.client import ProtocolError, Server
from turnwise.agents.engines.vllm_score import score
from turnwise.agents.engines.vllm_start import Needs, examine
from turnwise.agents.engines.vllm_weights import SavedWeights, four_phases, hot_lora, reload_folder
from turnwise.agents.engines.vllm_wire import COMPLETIONS, GENERATE, output_of
from turnwise.trainers.engines import own_logprobs
from turnwise.trainers.model import add_lora, save_model

REAL = json.loads((Path(__file__).parent / "vllm_0_32.json").read_text())
ANSWERS, ROUTES = REAL["answers"], REAL["routes"]
PROMPT = (2, 50, 300, 301, 77, 400, 5, 9)


def answered(name: str):
    return ANSWERS[name]["body"]


def asked(count: int, stop=()) -> GenRequest:
    return GenRequest("a", PROMPT, Sampling(count, 1.0, stop), 3)


# Reading


def test_a_recorded_completion_is_read_as_its_tokens_and_log_probabilities():
    answer = answered("return_tokens_as_token_ids")
    (choice,) = answer["choices"]
    output = output_of(COMPLETIONS, answer, asked(4), 4, 7, exact=True)
    assert output.token_ids == tuple(choice["token_ids"]) and output.finish == "length"
    assert output.logprobs == tuple(choice["logprobs"]["token_logprobs"])
    assert output.versions == ((7, 0, 4),)
    with pytest.raises(ProtocolError, match="another prompt"):
        output_of(
            COMPLETIONS, answer, GenRequest("a", PROMPT[1:], Sampling(4), 3), 4, 7, exact=True
        )


def test_a_recorded_answer_that_names_its_tokens_by_their_text_is_refused():
    """Two tokens may have one text: only ids are believed."""
    with pytest.raises(ProtocolError, match="other tokens"):
        output_of(COMPLETIONS, answered("stop_token_ids"), asked(3, (465,)), 3, 0, exact=True)


def test_recorded_scores_are_those_of_the_tokens_and_of_the_likeliest_beside_them():
    ids, rows = PROMPT[:4], answered("prompt_logprobs of four tokens")
    answer = {"choices": [{"prompt_token_ids": list(ids), "prompt_logprobs": rows}]}
    output = scored(answer, ScoreRequest(ids, 1, topk=3))
    assert output.logprobs == tuple(rows[i][str(ids[i])]["logprob"] for i in (1, 2, 3))
    for best, row in zip(output.topk_ids, rows[1:], strict=True):
        assert [row[str(token)]["rank"] for token in best] == [1, 2, 3]
        assert len(row) == 4, "the token itself comes as one more"


def scored(answer, request):
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))

    async def ask():
        server = Server("http://recorded", transport=transport)
        try:
            return await score(server, request, "policy")
        finally:
            await server.close()

    return asyncio.run(ask())


def test_the_recorded_refusal_of_the_other_route_is_passed_on_in_its_words():
    said = ANSWERS["generate (scale-out)"]
    assert said["status"] == 403

    def app(request):
        name = {"/version": "version", "/v1/models": "models", "/weight_info": "weight_info"}
        if request.url.path in name:
            return httpx.Response(200, json=answered(name[request.url.path]))
        return httpx.Response(403, json=said["body"])

    async def look():
        server = Server("http://recorded", transport=httpx.MockTransport(app))
        try:
            await examine(server, Needs(updates=True), GENERATE)
        finally:
            await server.close()

    with pytest.raises(ServerUnfit, match="--enable-scale-out"):
        asyncio.run(look())


# Asking


class Noted:
    """A stand-in that notes what it is asked and what it answers."""

    def __init__(self, app) -> None:
        self.app, self.asked, self.said = app, [], {}

    async def __call__(self, scope, receive, send):
        body, answer = bytearray(), bytearray()

        async def hear():
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        async def tell(message):
            answer.extend(message.get("body", b""))
            await send(message)

        await self.app(scope, hear, tell)
        route = f"{scope['method']} {scope['path']}"
        given = json.loads(bytes(body)) if body else None
        self.asked.append((route, parse_qs(scope["query_string"].decode()), given))
        if answer[:1] == b"{":
            self.said[route] = json.loads(bytes(answer))


@pytest.fixture(scope="module")
def noted(tmp_path_factory):
    """What an engine asks a server: at the start, with new weights each way, for draws, scores."""
    app = Noted(standin())
    for way, wire in ((reload_folder, COMPLETIONS), (four_phases, GENERATE), (hot_lora, GENERATE)):
        model, tokenizer = small()
        folder = tmp_path_factory.mktemp("weights")
        if way is hot_lora:
            model = add_lora(model, 2, seed=0)
            model.save_pretrained(folder)
        else:
            save_model(model, tokenizer, folder)
        with ExitStack() as stack:
            needs = Needs(updates=True, tokenizer=tokenizer)
            engine = engine_on(stack, inside(app), needs=needs, wire=wire, way=way)
            words = model.get_input_embeddings().weight.shape[0]
            saved = SavedWeights(folder, lambda ids, m=model: own_logprobs(m, ids), words)
            engine.update_weights(saved, 1)
            draw(engine)
            engine.score([ScoreRequest((7, 50, 31), 1, topk=2)])
    return app


def test_whatever_is_asked_is_a_route_of_the_real_server_with_names_that_it_knows(noted):
    ways = {"/collective_rpc", "/start_weight_update", "/v1/load_lora_adapter", "/weight_info"}
    assert ways < {route.split()[1] for route, _, _ in noted.asked}
    for route, query, body in noted.asked:
        assert route in ROUTES, f"vLLM has no {route}"
        assert set(query) <= set(ROUTES[route]["query"]), route
        if body is not None and ROUTES[route]["fields"]:
            assert set(body) <= set(ROUTES[route]["fields"]), route
        if body is not None and "sampling_params" in ROUTES[route]:
            assert set(body["sampling_params"]) <= set(ROUTES[route]["sampling_params"])


@pytest.mark.parametrize(
    ("route", "name"),
    [
        ("POST /v1/completions", "return_tokens_as_token_ids"),
        ("GET /version", "version"),
        ("GET /v1/models", "models"),
        ("GET /weight_info", "weight_info"),
        ("POST /tokenize", "tokenize chat"),
        ("POST /pause", "pause keep"),
        ("POST /resume", "resume"),
        ("POST /update_weight_version", "update_weight_version"),
        ("POST /collective_rpc", "collective_rpc get"),
    ],
)
def test_the_stand_in_invents_no_field_that_the_real_server_lacks(noted, route, name):
    real = dict(leaves(answered(name)))
    null = [path for path, value in real.items() if value is None]
    for path, value in leaves(noted.said[route]):
        # Where one of them had nothing to say it said null.
        known = path in real or any(path.startswith(other) for other in null)
        assert known or (value is None and any(other.startswith(path) for other in real)), path


def leaves(value, path=""):
    """Yield every path of a JSON value with what is there; places in lists count as one."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}")
    elif isinstance(value, list) and value:
        yield from leaves(value[0], f"{path}[]")
    else:
        yield path, value
