"""Laws of a change of weights under an engine over vLLM: all is by the new ones, or it is told."""

from __future__ import annotations

import contracts
import pytest
import torch
from contracts import LONG, WAYS, WIRES, gap
from miniatures import naive_logprobs, nudge
from servers import MAX_LEN, PROMPT, draw, small, wait_for

from turnwise.agents.engines import vllm_change, vllm_fleet, vllm_weights
from turnwise.agents.engines.base import GenRequest, Sampling
from turnwise.agents.engines.client import Server
from turnwise.agents.engines.vllm import EngineBroken
from turnwise.agents.engines.vllm_weights import reload_folder
from turnwise.agents.engines.vllm_wire import GENERATE
from turnwise.trainers.model import save_model

torch.set_num_threads(1)
place = contracts.place


# Weights


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_after_a_change_of_weights_everything_is_by_the_new_ones(place, way, wire):
    engine = place.engine(way=way, wire=wire)
    old = draw(engine, LONG)
    nudge(place.model)
    place.sync(engine, 5)
    new = draw(engine, LONG)
    assert new.versions == ((5, 0, 8),)
    assert gap(place, LONG, new) < 1e-4
    assert gap(place, LONG, old) > 0.1
    engine.close()


class Forgetful(Server):
    """Does not pass on what would reset the cache."""

    async def post(self, path, body=None, **more):
        if path.startswith(("/pause", "/resume", "/reset_prefix_cache")):
            return {}
        return await super().post(path, body, **more)


@pytest.mark.parametrize("salted", [True, False])
def test_the_probe_finds_a_stale_cache_and_a_salt_prevents_one(place, monkeypatch, salted):
    if not salted:
        for module in (vllm_fleet, vllm_change):
            monkeypatch.setattr(module, "version_name", lambda version: "always the same")
    monkeypatch.setattr(place, "server", _forgetful(place.server))
    engine = place.engine()
    assert gap(place, LONG, draw(engine, LONG)) < 1e-4
    nudge(place.model, rate=0.05)
    if salted:
        place.sync(engine, 2)
        assert gap(place, LONG, draw(engine, LONG)) < 1e-4
    else:
        with pytest.raises(EngineBroken, match="a stale prefix cache"):
            place.sync(engine, 2)
    engine.close()


def _forgetful(make):
    def made():
        server = make()
        server.__class__ = Forgetful
        return server

    return made


def test_a_sync_that_answers_well_and_leaves_other_weights_breaks_the_engine_until_one_succeeds(
    place, tmp_path
):
    async def wrong(server, folder, version, model):
        return await reload_folder(server, tmp_path, version, model)

    save_model(small(seed=9)[0], place.tokenizer, tmp_path)
    engine = place.engine()
    engine.submit(GenRequest("lost", PROMPT, Sampling(4)))
    engine.way = wrong
    with pytest.raises(EngineBroken, match="its weights are not those that were saved"):
        place.sync(engine, 2)
    with pytest.raises(EngineBroken, match="version 2 failed"):
        engine.poll()
    engine.way = reload_folder
    place.sync(engine, 3)
    assert engine.poll() == []
    assert draw(engine).versions == ((3, 0, 8),)
    engine.close()


def test_what_is_in_flight_during_an_update_says_which_version_drew_which_token(place):
    engine = place.engine(wire=GENERATE)
    old = small()[0]
    old.load_state_dict(place.model.state_dict())
    engine.submit(GenRequest("long", PROMPT, Sampling(MAX_LEN - 20), seed=2))
    for session in ("a", "b"):  # while these are drawn the long one is well under way
        draw(engine, session=session, count=20)
    nudge(place.model)
    place.sync(engine, 2)
    output = wait_for(engine, 1)["long"]
    (first, second) = output.versions
    assert (first[0], second[0]) == (1, 2)
    assert 0 == first[1] < first[2] == second[1] < second[2] == len(output.token_ids)
    ids = [*PROMPT, *output.token_ids]
    said, cut = torch.tensor(output.logprobs), first[2]
    by_old, by_new = (naive_logprobs(m, ids)[len(PROMPT) - 1 :] for m in (old, place.model))
    assert (by_old[:cut] - said[:cut]).abs().max() < 1e-4
    # The one token after the cut may have been drawn before the server took note of the name.
    assert (by_new[cut + 1 :] - said[cut + 1 :]).abs().max() < 1e-4
    engine.close()


def test_what_is_in_flight_over_completions_is_waited_for_and_is_by_the_old_weights(place):
    engine = place.engine()
    old = small()[0]
    old.load_state_dict(place.model.state_dict())
    engine.submit(GenRequest("a", PROMPT, Sampling(60), seed=2))
    draw(engine, session="b", count=2)
    nudge(place.model)
    place.sync(engine, 2)
    output = wait_for(engine, 1)["a"]
    assert output.versions == ((1, 0, 60),)
    assert gap(place, PROMPT, output, model=old) < 1e-4
    engine.close()


def test_the_probe_asks_for_the_same_ids_at_every_change_of_weights():
    ids = vllm_weights.probe_ids(100, 50)
    assert ids == vllm_weights.probe_ids(100, 50)
    assert min(ids) >= 0 and max(ids) < 100 and len(set(ids)) > 30
