"""Where an engine over vLLM is held to what it promises: on the stand-in, and on a real vLLM.

`make test-vllm` starts a real vLLM and runs the cases marked `vllm`. A habit of vLLM that a guard
relies on is a law too (test_vllm_habits.py), so that the stand-in cannot drift from it.
"""

from __future__ import annotations

import asyncio
import random

import pytest
import torch
from miniatures import naive_logprobs
from servers import Place, places

from turnwise.agents.engines.vllm_weights import four_phases, reload_folder
from turnwise.agents.engines.vllm_wire import COMPLETIONS, GENERATE

torch.set_num_threads(1)
LONG = [random.Random(4).randrange(6, 280) for _ in range(400)]
WIRES = {"completions": COMPLETIONS, "generate": GENERATE}
WAYS = {"reload": reload_folder, "phases": four_phases}


@pytest.fixture(scope="module", params=places())
def place(request, tmp_path_factory):
    name, start = request.param
    with start() as (server, (model, tokenizer)):
        yield Place(name, server, model, tokenizer, tmp_path_factory.mktemp("served"))


@pytest.fixture
def engine(place):
    engine = place.engine()
    yield engine
    engine.close()


def asked(place: Place, path: str, body=None):
    """The server's bare answer, past every guard."""

    async def ask():
        server = place.server()
        try:
            return await server.post(path, body)
        finally:
            await server.close()

    return asyncio.run(ask())


def gap(place: Place, ids, output, at: float = 1.0, model=None) -> float:
    """Largest difference from a plain forward pass of the trainer's model, in nats."""
    own = naive_logprobs(model or place.model, [*ids, *output.token_ids], at)[len(ids) - 1 :]
    return (own - torch.tensor(output.logprobs)).abs().max().item()
