"""A hundred faults of servers in mid-training: no trained episode is lost, twice there or wrong."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import Counter, defaultdict

import pytest
import torch
from servers import small, standin
from test_engine_training import run, tokens, training

from turnwise.agents.engines.base import EngineError
from turnwise.agents.engines.client import ServerRefused
from turnwise.agents.engines.standin import Settings, StandIn, served
from turnwise.agents.record import read_records
from turnwise.envs.types import Episode, Outcome, Stop
from turnwise.trainers import engines
from turnwise.trainers.engines import WeightsNotTaken
from turnwise.trainers.ranks import portable

torch.set_num_threads(1)
FAULTS = ("cut", "refused", "lie", "slow", "slow", "cut")
"""Two of six lose the request; the others are borne by the client."""


class Mortal:
    """An application that is gone after so many answers of one of its routes."""

    def __init__(self, app, path: str, answers: int) -> None:
        self.app, self.path, self.left = app, path, answers

    async def __call__(self, scope, receive, send) -> None:
        self.left -= scope.get("path") == self.path
        if self.left < 0:
            return await _answer(send, 503, {"error": {"message": "going down"}})
        await self.app(scope, receive, send)


class Faulty:
    """An application that answers some requests for tokens badly.

    Args:
        share: of the requests, but for those of a client's look at the start.
    """

    def __init__(self, app, rng: random.Random, share: float) -> None:
        self.app, self.rng, self.share, self.made = app, rng, share, Counter[str]()

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http" or scope["path"] != "/v1/completions":
            return await self.app(scope, receive, send)
        event = await receive()
        body = json.loads(event["body"])
        fault = self._fault() if body["prompt"][:3] != [1, 2, 3] else ""  # the look at the start

        async def again():
            return event

        if fault == "refused":
            return await _answer(send, 503, {"error": {"message": "overloaded"}})
        await asyncio.sleep(0.05 if fault == "slow" else 0)
        events = []

        async def keep(sent) -> None:
            events.append(sent)

        await self.app(scope, again, keep)
        start, answer = events
        if fault == "cut":  # the connection ends amid the body
            await send(start)
            return await send({**answer, "body": answer["body"][:-20], "more_body": True})
        if fault == "lie":
            said = json.loads(answer["body"])
            said["choices"][0]["token_ids"].append(5)
            return await _answer(send, 200, said)
        await send(start)
        await send(answer)

    def _fault(self) -> str:
        fault = self.rng.choice(FAULTS) if self.rng.random() < self.share else ""
        self.made[fault or "none"] += 1
        return fault


async def _answer(send, status: int, said) -> None:
    raw = json.dumps(said).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": raw})


def played(out) -> dict[int, list[Episode]]:
    """The episodes on record, by step."""
    by_step = defaultdict(list)
    for episode in read_all(out):
        by_step[int(episode.group[1:].split("-")[0])].append(episode)
    return by_step


def read_all(out) -> list[Episode]:
    """The episodes on record."""
    return [record.episode for record in read_records(out / "episodes.jsonl")]


def to_the_end(out, engine: str, **how) -> tuple[list[dict], int]:
    """Train, and go on as often as the servers end the run; return the steps and the ends."""
    rows, ends = {}, 0
    while len(rows) < how["steps"]:
        try:
            for row in training(out, engine, resume=out.exists(), checkpoint_every=1, **how):
                rows[row["step"]] = row
        except EngineError as error:
            ends += 1
            assert "\n" not in str(error) and ends < 60
    return [rows[step + 1] for step in range(how["steps"])], ends


def test_a_hundred_faults_lose_no_trained_episode_train_none_twice_and_none_wrongly(tmp_path):
    apps = [Faulty(standin(), random.Random(seed), 0.35) for seed in (1, 2)]
    how = {"steps": 12, "max_failed": 0.9}
    with served(apps[0]) as one, served(apps[1]) as two:
        rows, ends = to_the_end(tmp_path / "run", f"{one},{two}", **how)
    made = sum((app.made for app in apps), Counter())
    assert made.total() - made["none"] >= 100 and min(made[fault] for fault in FAULTS) >= 10
    by_step = played(tmp_path / "run")
    every = [episode for step in by_step.values() for episode in step]
    assert len({episode.id for episode in every}) == len(every) == 12 * 12
    assert {e.outcome for e in every} <= {Outcome.OK, Outcome.INFRA_ERROR}
    assert sum(e.attempts > 1 for e in every) >= 10 and ends < 60
    for step, row in enumerate(rows):
        whole = [e for e in by_step[step] if e.outcome is Outcome.OK]
        updates = row["policy_version"] - (rows[step - 1]["policy_version"] if step else 0)
        sampled = sum(len(turn.action_ids) for e in whole for turn in e.turns)
        assert row["trained_tokens"] * updates == pytest.approx(sampled)  # a mean over the updates
        assert row["lost"] == pytest.approx(1 - len(whole) / 12)
        assert row["engine_gap"] < 1e-4
    calm = run(tmp_path / "calm", "embedded", **how)
    losses = [step for step, row in enumerate(rows) if row["lost"]]
    same, drawn = tokens(tmp_path / "calm"), tokens(tmp_path / "run")
    for step in range(losses[0] + 1 if losses else 12):  # until then nothing is learnt otherwise
        for episode in by_step[step]:
            assert episode.outcome is not Outcome.OK or drawn[episode.id] == same[episode.id]
        if step not in losses:
            assert rows[step]["loss"] == pytest.approx(calm[step]["loss"], abs=1e-5)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("syncs", [2, 3])
def test_a_server_that_ends_at_a_change_of_weights_costs_no_step_that_was_over(
    tmp_path, syncs, depth
):
    how = {"steps": 4, "checkpoint_every": 0, "pipeline_depth": depth}
    with served(standin()) as url:
        calm = run(tmp_path / "calm", url, **how)
    rows = []
    mortal = Mortal(standin(), "/collective_rpc", syncs)
    with served(mortal) as url, pytest.raises(EngineError) as failed:
        rows.extend(training(tmp_path / "run", url, **how))
    assert "\n" not in str(failed.value) and 0 < len(rows) < 4
    saved = sorted(place.name for place in (tmp_path / "run/checkpoints").iterdir())
    assert saved == [f"step-{len(rows):06d}"]
    with served(standin()) as url:
        rows += run(tmp_path / "run", url, resume=True, **how)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert tokens(tmp_path / "run") == tokens(tmp_path / "calm")
    for row, other in zip(rows, calm, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_a_server_that_ends_after_the_last_batch_costs_nothing(tmp_path):
    with served(Mortal(standin(), "/collective_rpc", 3)) as url:
        assert len(run(tmp_path / "run", url, steps=3)) == 3
    assert (tmp_path / "run/model/config.json").exists()


def test_a_teacher_that_ends_amid_a_step_leaves_the_checkpoint_before_it(tmp_path):
    how = {"recipe": "kdrl", "updates_per_step": 3, "steps": 3, "checkpoint_every": 1}
    counted = Mortal(longer(), "/v1/completions", 10**6)
    with served(counted) as url:
        calm = run(tmp_path / "calm", teacher=url, **how)
    asked = 10**6 - counted.left
    rows = []
    with (
        served(Mortal(longer(), "/v1/completions", asked - 1)) as url,
        pytest.raises(EngineError) as failed,
    ):
        rows.extend(training(tmp_path / "run", teacher=url, **how))
    assert type(failed.value) is not WeightsNotTaken and len(rows) == 2
    with served(longer()) as url:
        rows += run(tmp_path / "run", teacher=url, resume=True, **how)
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in calm], abs=1e-5)
    assert [row["policy_version"] for row in rows] == [row["policy_version"] for row in calm]


def longer() -> StandIn:
    """A server that scores an episode to its end."""
    return StandIn(*small(1), Settings(max_model_len=128))


class Hung:
    """An application that answers one request of an episode of the second step when the gate is
    opened."""

    def __init__(self, app, gate: threading.Event) -> None:
        self.app, self.gate, self.asked = app, gate, Counter[str]()

    async def __call__(self, scope, receive, send) -> None:
        self.asked[scope.get("path", "")] += 1
        if scope.get("path") != "/v1/completions":
            return await self.app(scope, receive, send)
        event = await receive()
        of_an_episode = json.loads(event["body"])["max_tokens"] == 3  # as `training` has it
        if of_an_episode and self.asked["/resume"] == 2 and not self.asked["hung"]:
            self.asked["hung"] += 1
            while not self.gate.is_set():
                await asyncio.sleep(0.05)

        async def again():
            return event

        await self.app(scope, again, send)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_server_that_hangs_with_a_batch_in_flight_costs_an_attempt_and_not_the_run(
    tmp_path, retries
):
    how = {"pipeline_depth": 1, "steps": 4, "max_failed": 1.0, "retries": retries}
    gate = threading.Event()
    try:
        with served(Hung(standin(), gate)) as url:
            rows = run(tmp_path / "run", url, reply_timeout_s=15.0, **how)
            gate.set()
    finally:
        gate.set()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    hit = [e for e in read_all(tmp_path / "run") if e.attempts > 1 or not e.outcome.trainable]
    assert len(hit) == 1 and hit[0].group.startswith("s1-")
    assert [row["lost"] > 0 for row in rows] == [False, not retries, False, False]
    if retries:
        run(tmp_path / "calm", "embedded", **how)
        assert tokens(tmp_path / "run") == tokens(tmp_path / "calm")
    else:
        assert (hit[0].outcome, hit[0].stop) == (Outcome.INFRA_ERROR, Stop.DEADLINE)


class Slow:
    """An application that takes its time over tokens, and notes what it was asked and drew."""

    def __init__(self, app, seconds: float) -> None:
        self.app, self.seconds, self.drawn = app, seconds, []

    async def __call__(self, scope, receive, send) -> None:
        if scope.get("path") != "/v1/completions":
            return await self.app(scope, receive, send)
        await asyncio.sleep(self.seconds)
        events = []

        async def keep(sent) -> None:
            events.append(sent)

        await self.app(scope, receive, keep)
        (choice,) = json.loads(events[1]["body"])["choices"]
        if len(choice["token_ids"]) <= 3 and choice["prompt_logprobs"] is None:  # an episode's
            self.drawn.append((choice["prompt_token_ids"], choice["token_ids"]))
        for sent in events:
            await send(sent)

    @property
    def opened(self) -> list[list[int]]:
        """What was asked that goes on from nothing that this server drew."""
        ends = [[*prompt, *ids] for prompt, ids in self.drawn]
        begins = [prompt for prompt, _ in self.drawn]
        return [p for p in begins if not any(p[: len(end)] == end for end in ends)]


def test_a_server_that_is_twenty_times_slower_gets_little_and_costs_no_episode(
    tmp_path, monkeypatch
):
    made = []

    def connected(*given, whole=engines.connected):
        made.append(whole(*given))
        return made[-1]

    monkeypatch.setattr(engines, "connected", connected)
    fast, slow = Slow(standin(), 0.1), Slow(standin(), 2.0)
    how = {"steps": 4, "reply_timeout_s": 60.0}
    with served(slow) as one, served(fast) as two:
        rows = []
        for row in training(tmp_path / "run", f"{one},{two}", **how):
            rows.append((row, len(slow.drawn), len(fast.drawn)))
    calm = run(tmp_path / "calm", "embedded", **how)
    assert tokens(tmp_path / "run") == tokens(tmp_path / "calm")
    for (row, _, _), other in zip(rows, calm, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
    every = read_all(tmp_path / "run")
    assert len({episode.id for episode in every}) == len(every) == 4 * 12
    assert {(e.outcome, e.attempts) for e in every} == {(Outcome.OK, 1)}
    # Once both are known, and of each episode both turns where its first one was.
    (_, slow_before, fast_before), (_, slow_after, fast_after) = rows[0], rows[-1]
    assert slow_before and fast_after - fast_before > 10 * (slow_after - slow_before)
    assert all(len(app.opened) == len(app.drawn) / 2 for app in (slow, fast))
    (engine,) = made
    assert all(replica.alive and not replica.failures for replica in engine.replicas.every)


def test_the_deadline_of_a_run_is_that_of_its_changes_of_weights(tmp_path):
    app = standin()

    async def hanging(scope, receive, send):
        if scope.get("path") == "/collective_rpc":
            await asyncio.sleep(30)
        await app(scope, receive, send)

    with (
        served(hanging) as url,
        pytest.raises(WeightsNotTaken, match="/collective_rpc: no answer in 6 s") as late,
    ):
        run(tmp_path / "run", url, reply_timeout_s=6.0)
    assert "\n" not in str(late.value)


def test_what_a_server_says_is_wrong_reaches_every_process_as_it_is():
    kinds, found = [EngineError], []
    while kinds:
        kinds += (kind := kinds.pop()).__subclasses__()
        found.append(kind)
    assert len(found) >= 6
    for kind in found:
        error = portable(kind("gone", 503) if kind is ServerRefused else kind("gone"))
        assert type(error) is kind and str(error) == "gone"
        assert kind is not ServerRefused or error.status == 503
