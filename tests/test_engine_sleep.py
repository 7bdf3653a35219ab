"""Servers that share a GPU with the trainer: asleep while it learns, awake for all else."""

from __future__ import annotations

import re
from itertools import product

import httpx
import pytest
import torch
from servers import Proxy, small, standin
from test_engine_training import run, tokens, training

from turnwise.agents.engines.base import ServerUnfit
from turnwise.agents.engines.standin import served
from turnwise.agents.record import read_records
from turnwise.trainers.addresses import repeated, same_servers
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.engines import NotAsleep
from turnwise.trainers.learner import Learner, TrainingDiverged

torch.set_num_threads(1)
PATHS = ("/sleep", "/is_sleeping", "/wake_up", "/reset_prefix_cache", "/collective_rpc", "/resume")
WOKEN = [
    *("/sleep?level=2&mode=wait", "/is_sleeping", "learns", "/wake_up?tags=weights"),
    *("/collective_rpc", "/reset_prefix_cache", "/wake_up?tags=kv_cache", "/is_sleeping"),
]


class Told:
    """A stand-in that notes which routes of weights and of sleep it was asked for.

    Args:
        fails: by path, after how many answers there is no such route.
    """

    def __init__(self, fails: dict[str, int] | None = None, **settings) -> None:
        self.app, self.heard, self.fails = standin(**settings), [], dict(fails or {})

    async def __call__(self, scope, receive, send) -> None:
        path = scope.get("path", "")
        if path in PATHS:
            query = scope["query_string"].decode()
            self.heard.append(path + ("?" + query if query else ""))
        if path in self.fails:
            self.fails[path] -= 1
            if self.fails[path] < 0:
                path = "/nowhere"
        await self.app({**scope, "path": path}, receive, send)

    @property
    def awake(self) -> bool:
        return not self.app.asleep and self.app.served.resumed.is_set()


def tasks(out) -> dict[str, int]:
    """Index of the task of every group, by the group's name."""
    found = [record.episode for record in read_records(out / "episodes.jsonl")]
    return {episode.group: episode.task.fields["index"] for episode in found}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    out = tmp_path_factory.mktemp("embedded") / "run"
    return out, run(out, "embedded")


@pytest.fixture
def learns(monkeypatch):
    """Has every optimizer step call what is in the list that it gives."""
    calls = []

    def improve(self, *given, whole=Learner.improve, **named):
        for call in calls:
            call()
        return whole(self, *given, **named)

    monkeypatch.setattr(Learner, "improve", improve)
    return calls


@pytest.mark.parametrize("sync", ["reload", "phases"])
def test_servers_sleep_through_each_step_and_the_run_is_that_of_the_embedded_engine(
    embedded, tmp_path, learns, sync
):
    out, rows = embedded
    told = Told()
    learns.append(lambda: told.heard[-1:] == ["learns"] or told.heard.append("learns"))
    learns.append(lambda: found.append(set(told.app.asleep)))
    found = []
    with served(told) as url:
        again = run(tmp_path / "run", url, engine_sleep=2, engine_sync=sync)
    assert tokens(tmp_path / "run") == tokens(out)
    for row, other in zip(rows, again, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
    assert found == [{"weights", "kv_cache"}] * 6 and told.awake
    first = told.heard.index(WOKEN[0])
    assert "/resume" in told.heard[:first] and "/resume" not in told.heard[first:]
    woken = [path for path in WOKEN if sync == "reload" or path != "/collective_rpc"]
    assert told.heard[first:][: 2 * len(woken)] == 2 * woken


def test_the_trainer_gives_back_what_it_reserves_before_a_server_wakes(tmp_path, monkeypatch):
    told = Told()
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: told.heard.append("gives back"))
    with served(told) as url:
        run(tmp_path / "run", url, engine_sleep=1)
    slept = [n for n, path in enumerate(told.heard) if path.startswith("/sleep")]
    assert len(slept) == 3
    for n in slept[:-1]:
        assert told.heard[n + 1 : n + 4] == [
            *("/is_sleeping", "gives back", "/wake_up?tags=weights"),
        ]


def test_at_the_end_of_a_run_its_server_is_awake_and_holds_weights(tmp_path):
    told = Told()
    with served(told) as url:
        run(tmp_path / "run", url, engine_sleep=2, steps=1)
        assert not httpx.get(f"{url}/is_sleeping").json()["is_sleeping"]
    own = small()[0].state_dict()
    held = told.app.served.base.model.state_dict()
    assert all(torch.equal(own[name], weight) for name, weight in held.items())


def test_adapters_travel_to_a_server_that_keeps_what_they_adapt(tmp_path):
    told = Told()
    with served(told) as url:
        rows = run(tmp_path / "run", url, engine_sleep=1, lora_rank=2, engine_sync="lora", steps=2)
    assert max(row["engine_gap"] for row in rows) < 1e-4 and told.awake
    assert told.heard.count("/sleep?level=1&mode=wait") == 2


def test_rounds_of_imitation_let_the_server_sleep_too(tmp_path, monkeypatch):
    told, found = Told(), []

    def imitate(self, *given, whole=Learner.imitate, **named):
        found.append(set(told.app.asleep))
        return whole(self, *given, **named)

    monkeypatch.setattr(Learner, "imitate", imitate)
    with served(told) as url:
        run(tmp_path / "run", url, recipe="dagger", engine_sleep=1, steps=2)
    assert found == [{"weights", "kv_cache"}] * 4 and told.awake


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"engine_sleep": 1, "pipeline_depth": 1}, "set one of the two to 0"),
        ({"engine_sleep": 2, "engine_sync": "lora", "lora_rank": 2}, "set engine_sleep 1"),
        ({"engine_sleep": 3}, "a level from 0 to 2, got 3"),
        ({"engine_sleep": 1, "engine": ""}, "name them with engine"),
        ({"engine_sleep": 1, "teacher": "http://b:1/v1"}, "serve the teacher elsewhere"),
        ({"engine_sleep": 1, "teacher": "https://x:1,http://B:1/"}, "has http://b:1 asleep"),
    ],
)
def test_a_server_that_would_be_needed_asleep_is_refused_before_it_is_asked(given, why):
    with pytest.raises(ValueError, match=re.escape(why)):
        TrainConfig(**{"engine": "http://a:1,http://b:1", **given})


ONE_SERVER = [
    (
        "http://127.0.0.1:8000",
        "http://localhost:8000",
        "http://LOCALHOST:8000/v1/",
        "http://[::1]:8000",
    ),
    ("http://gpu", "http://GPU:80", "http://gpu/", "http://gpu./v1"),
    ("https://gpu", "https://gpu:443/"),
    ("http://gpu:1/policy", "http://gpu:1/policy/v1"),
]


@pytest.mark.parametrize("names", ONE_SERVER)
def test_a_server_is_one_however_its_address_is_written_and_others_are_others(names):
    others = [name for server in ONE_SERVER if server is not names for name in server]
    for name, other in product(names, repeat=2):
        assert same_servers(",".join([*others, name]), other) == [name]
        assert not same_servers(name, "a/folder, http://gpu:x http://[::1 http://127.0.0.1:8001")
        assert repeated(",".join([name, *others[:1], other])) == [other]
        with pytest.raises(
            ValueError, match=r"one server twice, again as .*; name each server once"
        ):
            TrainConfig(env="x", model="y", engine=f"{name},{other}")
    assert repeated(",".join(server[0] for server in ONE_SERVER)) == []


def test_a_server_without_sleep_mode_is_refused_at_the_start_with_what_to_change(tmp_path):
    for told, why in (
        (Told(sleep_mode=False), "started without --enable-sleep-mode.*serve-policy --colocated"),
        (Told({"/is_sleeping": 1}), "no routes to sleep: .*serve-policy --colocated"),
    ):
        with served(told) as url, pytest.raises(ServerUnfit, match=why):
            run(tmp_path / "run", url, engine_sleep=1)
        assert not {path.partition("?")[0] for path in told.heard} - {"/is_sleeping"}
    assert not (tmp_path / "run/episodes.jsonl").exists()
    with served(Told(sleep_mode=False)) as url:
        run(tmp_path / "whole", url, steps=1)


def test_a_cpu_has_nothing_to_free_and_one_that_tells_nothing_is_believed(tmp_path):
    for told in (Told(sleep_mode=False, device="cpu"), Told({"/server_info": 0})):
        with served(told) as url:
            assert run(tmp_path / told.app.settings.device, url, engine_sleep=1, steps=1)


def test_a_server_that_does_not_sleep_ends_the_run_with_what_was_learnt_and_another_goes_on(
    embedded, tmp_path
):
    rows = []
    with served(Told({"/sleep": 1})) as url, pytest.raises(NotAsleep, match=r"/sleep.*404") as no:
        rows.extend(training(tmp_path / "run", url, engine_sleep=1))
    assert "\n" not in str(no.value) and [row["step"] for row in rows] == [1]
    assert [place.name for place in (tmp_path / "run/checkpoints").iterdir()] == ["step-000001"]
    with served(Told()) as url:
        run(tmp_path / "run", url, engine_sleep=1, resume=True)
    assert tokens(tmp_path / "run") == tokens(embedded[0])


def test_a_step_whose_server_did_not_sleep_chooses_the_same_prompts_again(tmp_path):
    more = {"prompt_replay": 1.0, "steps": 3, "learning_rate": 1e-3}
    run(tmp_path / "whole", "embedded", **more)
    with served(Told({"/sleep": 1})) as url, pytest.raises(NotAsleep):
        run(tmp_path / "run", url, engine_sleep=1, **more)
    with served(Told()) as url:
        rows = run(tmp_path / "run", url, engine_sleep=1, resume=True, **more)
    assert rows[0]["step"] == 2 and rows[0]["replayed"] > 0
    assert tasks(tmp_path / "run") == tasks(tmp_path / "whole")


def test_a_server_that_says_that_it_is_awake_after_all_is_not_taken_at_its_200(tmp_path):
    told = Told()

    async def dozing(scope, receive, send):
        await told(scope, receive, send)
        told.app.asleep.clear()
        told.app.served.resume()

    with served(dozing) as url, pytest.raises(NotAsleep, match="awake after /sleep"):
        run(tmp_path / "run", url, engine_sleep=1)


@pytest.mark.parametrize("level", [1, 2])
def test_a_step_that_fails_leaves_no_server_asleep(tmp_path, learns, level):
    def fail():
        assert not told.awake
        raise TrainingDiverged("the loss is nan")

    told = Told()
    learns.append(fail)
    with served(told) as url, pytest.raises(TrainingDiverged):
        run(tmp_path / "run", url, engine_sleep=level)
    assert told.awake


@pytest.mark.parametrize("path", ["/wake_up", "/collective_rpc"])
def test_a_server_that_cannot_be_woken_is_named(tmp_path, learns, caplog, path):
    told = Told({path: 1} if path == "/collective_rpc" else {path: 0})
    with served(told) as url, pytest.raises(Exception, match="failed"):
        run(tmp_path / "run", url, engine_sleep=2)
    said = [r.getMessage() for r in caplog.records if "may be asleep" in r.getMessage()]
    assert len(said) == 1 and said[0].startswith(url)
    assert not told.awake, "rather than answer without its weights"


def test_a_run_that_was_killed_is_resumed_on_the_server_that_it_left_asleep(embedded, tmp_path):
    told = Told()
    with served(told) as url:
        run(tmp_path / "run", url, engine_sleep=2, steps=2)
        httpx.post(f"{url}/sleep?level=2&mode=wait")
        told.heard.clear()
        run(tmp_path / "run", url, engine_sleep=0, resume=True, reply_timeout_s=30.0)
    assert tokens(tmp_path / "run") == tokens(embedded[0])
    assert told.heard[:3] == ["/is_sleeping", "/wake_up?tags=weights", "/collective_rpc"]


def test_a_server_that_is_lost_on_its_way_to_sleep_is_dead_and_the_other_one_goes_on(
    embedded, tmp_path
):
    with served(Told()) as one, served(Told()) as two:
        proxy = Proxy(one, path="/sleep", breaks=10**6)
        run(tmp_path / "run", f"{proxy.url},{two}", engine_sleep=1)
        for url in (one, two):
            assert not httpx.get(f"{url}/is_sleeping").json()["is_sleeping"]
        proxy.close()
    assert tokens(tmp_path / "run") == tokens(embedded[0]) and proxy.seen == 1


def test_a_resumed_run_may_change_the_level(tmp_path):
    with served(Told()) as url:
        run(tmp_path / "run", url, engine_sleep=1, steps=1)
        run(tmp_path / "run", url, engine_sleep=2, steps=2, resume=True)
