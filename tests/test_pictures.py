"""Pictures belong to their record: kept once, proven when looked at, found wherever it is moved."""

from __future__ import annotations

import base64
import json
import os
import shutil
from dataclasses import replace

import pytest
from fakes import Guess

from turnwise.agents.blobs import (
    MAX_BLOB_BYTES,
    BlobFault,
    Blobs,
    blob_digest,
    digests_of,
    picture_faults,
)
from turnwise.agents.episode_json import episode_from_json, episode_to_json
from turnwise.agents.pictures import Pictures
from turnwise.agents.policy import ScriptedPolicy, expert
from turnwise.agents.record import RecordError, RecordWriter, read_records, verify
from turnwise.agents.replay import execute, view
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.agents.viewer import Exhibit, write_report
from turnwise.cli.replay import Options, run
from turnwise.envs.registry import make
from turnwise.envs.types import Episode, Outcome

JPEG = b"\xff\xd8\xff"


class Drawn(Guess):
    """A `Guess` that shows what is left as a picture: equal states look alike."""

    fast = False

    def reset(self, **options):
        observation, info = super().reset(**options)
        return observation, {**info, "picture": self.drawn()}

    def step(self, action):
        *answer, info = super().step(action)
        return *answer, {**info, "picture": self.drawn()}

    def drawn(self) -> bytes:
        return JPEG + f"{self.low} to {self.high}".encode()


def drawn_episode(**settings) -> Episode:
    jobs = jobs_for(Drawn().tasks("train")[:1], run_seed=0, split="train")
    (episode,) = play(jobs, Drawn, ScriptedPolicy(expert), Settings(**settings))
    return episode


def recorded(folder, *episodes: Episode) -> Episode:
    """Record the episodes and return the last one as it is read."""
    with RecordWriter(folder / "episodes.jsonl") as record:
        record.extend(episodes)
    return read(folder)


def read(folder) -> Episode:
    *_, row = read_records(folder / "episodes.jsonl")
    return row.episode


def file_of(folder, digest: str):
    return folder / "blobs" / f"{digest}.jpg"


def test_a_turn_holds_the_digest_of_what_was_seen_before_it():
    episode = drawn_episode()
    env = Drawn()
    env.reset(seed=episode.env_seed, options={"task": episode.task})
    for turn in episode.turns:
        assert episode.blobs[turn.picture] == env.drawn()
        env.step(turn.action)
    assert episode.blobs[episode.final_picture] == env.drawn()
    cut = drawn_episode(max_turns=1)
    assert cut.outcome is Outcome.TRUNCATED
    assert cut.final_picture == episode.turns[1].picture


def test_a_record_keeps_each_picture_once_beside_it_and_gives_it_back(tmp_path):
    episode = drawn_episode()
    again = recorded(tmp_path, episode, replace(episode, id="other"))
    assert dict(again.blobs) == dict(episode.blobs) == dict(Blobs(tmp_path / "episodes.jsonl"))
    assert {path.name for path in (tmp_path / "blobs").iterdir()} == {
        f"{blob_digest(data)}.jpg" for data in episode.blobs.values()
    }
    assert replace(again, id=episode.id, task=episode.task) == episode
    assert picture_faults(again) == [] and verify(tmp_path / "episodes.jsonl").lines == 3


def test_a_record_of_an_environment_that_draws_nothing_is_as_ever(tmp_path):
    jobs = jobs_for(Guess().tasks("train")[:1], run_seed=0, split="train")
    recorded(tmp_path, *play(jobs, Guess, ScriptedPolicy(expert)))
    assert b"picture" not in (tmp_path / "episodes.jsonl").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["episodes.jsonl"]


def test_record_and_blobs_that_are_moved_together_show_every_picture(tmp_path):
    episode = drawn_episode()
    (tmp_path / "a").mkdir()
    recorded(tmp_path / "a", episode)
    shutil.move(tmp_path / "a", tmp_path / "b")
    moved = read(tmp_path / "b")
    assert all(type(place) is int for place in Pictures().of(moved))
    page = write_report(tmp_path / "page.html", title="t", episodes=[Exhibit(moved)]).read_text()
    assert all(base64.b64encode(data).decode() in page for data in episode.blobs.values())
    assert "pictures as recorded" in view(moved)


def test_a_record_copied_into_another_takes_its_pictures_along(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    copied = recorded(tmp_path / "b", recorded(tmp_path / "a", drawn_episode()))
    shutil.rmtree(tmp_path / "a")
    assert picture_faults(copied) == []


@pytest.mark.parametrize("harm", ["changed", "missing"])
def test_a_picture_that_is_changed_or_missing_is_named_and_replay_leaves_it_so(tmp_path, harm):
    episode = recorded(tmp_path, drawn_episode())
    path = file_of(tmp_path, episode.turns[1].picture)
    path.write_bytes(JPEG + b"another") if harm == "changed" else path.unlink()
    before = {file.name: file.read_bytes() for file in (tmp_path / "blobs").iterdir()}
    (fault,) = picture_faults(episode)
    assert f"{path} " in fault and harm in fault
    assert fault in view(episode, width=500)
    places = Pictures().of(episode)
    shown = zip(places, digests_of(episode), strict=True)
    assert all(place == fault if path.stem == name else type(place) is int for place, name in shown)
    page = write_report(tmp_path / "page.html", title="t", episodes=[Exhibit(episode)])
    assert json.dumps(fault)[1:-1] in page.read_text()
    assert execute(episode, Drawn) is None
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "blobs").iterdir()}


def test_the_command_names_a_changed_picture_and_exits_as_for_a_divergence(tmp_path, capsys):
    jobs = jobs_for(make("turnwise/FileHunt-v1").tasks("dev")[:1], run_seed=0, split="dev")
    (episode,) = play(jobs, lambda: make("turnwise/FileHunt-v1"), ScriptedPolicy(expert))
    data = JPEG + b"the end"
    digest = blob_digest(data)
    recorded(tmp_path, replace(episode, final_picture=digest, blobs={digest: data}))
    options = Options(tmp_path / "episodes.jsonl", json=True)
    assert run(options) == 0
    file_of(tmp_path, digest).write_bytes(data + b"!")
    assert run(options) == 3
    *_, last = capsys.readouterr().out.split('"findings"')
    assert f"{digest}.jpg was changed" in last
    assert run(replace(options, mode="view")) == 0
    assert f"{digest}.jpg was changed" in capsys.readouterr().out


def test_a_picture_that_a_crash_left_torn_is_written_anew(tmp_path):
    episode = drawn_episode()
    recorded(tmp_path, episode)
    path = file_of(tmp_path, episode.final_picture)
    path.write_bytes(b"")
    with RecordWriter.resume(tmp_path / "episodes.jsonl") as record:
        record.append(replace(episode, id="later"))
    assert picture_faults(read(tmp_path)) == []


@pytest.mark.parametrize("name", ["../secret", "", "A" * 64, "a" * 63, f"../blobs/{'a' * 64}"])
def test_a_record_names_no_file_but_its_own_blobs(tmp_path, name):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    blobs = Blobs(tmp_path / "episodes.jsonl")
    with pytest.raises(BlobFault, match="is no digest of a picture"):
        blobs[name]
    assert blobs.get(name) is None and name not in blobs


def test_what_is_no_file_or_too_long_is_a_fault_and_never_waited_for(tmp_path):
    blobs = Blobs(tmp_path / "episodes.jsonl")
    blobs.folder.mkdir()
    os.mkfifo(file_of(tmp_path, "a" * 64))
    with pytest.raises(BlobFault, match="is missing; move the folder blobs along"):
        blobs["a" * 64]
    data = bytes(MAX_BLOB_BYTES + 2)
    file_of(tmp_path, blob_digest(data)).write_bytes(data)
    with pytest.raises(BlobFault, match="was changed"):
        blobs[blob_digest(data)]


def test_no_line_names_a_picture_that_could_not_be_written(tmp_path):
    (tmp_path / "blobs").write_text("a file where the folder should be")
    with RecordWriter(tmp_path / "episodes.jsonl") as record:
        with pytest.raises(RecordError, match="its folder is a file"):
            record.append(drawn_episode())
        (tmp_path / "blobs").unlink()
        record.append(drawn_episode())
    assert verify(tmp_path / "episodes.jsonl").lines == 2 and picture_faults(read(tmp_path)) == []


def test_a_picture_that_is_no_bytes_is_a_bug_of_the_environment():
    class Wrong(Drawn):
        def drawn(self):
            return "a text"

    jobs = jobs_for(Wrong().tasks("train")[:1], run_seed=0, split="train")
    (episode,) = play(jobs, Wrong, ScriptedPolicy(expert))
    assert episode.outcome is Outcome.ENV_ERROR and "a picture is bytes, got str" in episode.error


def test_a_report_holds_each_picture_once_and_not_more_than_fit():
    episode = drawn_episode()
    first, second, *_ = dict.fromkeys(turn.picture for turn in episode.turns)
    blobs = {first: JPEG + b"." * 97, second: JPEG + b"." * 97, "x": b"<svg> is no JPEG"}
    turns = tuple(replace(episode.turns[0], picture=name) for name in (first, second, first, "x"))
    segments = (replace(episode.segments[0], turns=turns),)
    episode = replace(episode, segments=segments, blobs=blobs, final_picture="")
    assert Pictures().of(episode) == [0, 1, 0, None, None]
    assert Pictures(max_bytes=150).of(episode) == [0, None, 0, None, None]


def test_an_episode_that_came_without_its_pictures_says_so():
    bare = episode_from_json(episode_to_json(drawn_episode()))
    assert len(picture_faults(bare)) == len({turn.picture for turn in bare.turns})
    assert all("came without it" in fault for fault in picture_faults(bare))
