"""Laws of the record: exact, provable line by line, and never left half-written."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.agents.chain import Position, prove
from turnwise.agents.episode_json import (
    RecordedTask,
    TaskChanged,
    episode_from_json,
    episode_to_json,
    rebuild_task,
)
from turnwise.agents.record import (
    NewerSchema,
    RecordError,
    RecordWriter,
    read_header,
    read_records,
    verify,
)
from turnwise.envs.types import Episode, Outcome, Segment, Stop, Task, Turn, canonical_json


@dataclass(frozen=True, kw_only=True)
class Maze(Task):
    seed: int
    words: tuple[str, ...] = ()
    grid: tuple[tuple[int, ...], ...] | None = None


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=()), max_size=12)  # lone surrogates included
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
TASKS = st.builds(
    Maze,
    seed=st.integers(),
    words=st.lists(st.text(max_size=9), max_size=2).map(tuple),
    grid=st.none() | st.just(((1, 2), ())),
    hidden=st.dictionaries(st.text(max_size=9), FLOATS, max_size=2),
)


@st.composite
def turns(draw: st.DrawFn) -> Turn:
    ids = draw(st.lists(st.integers(0, 1 << 17), max_size=3))
    return Turn(
        context_ids=tuple(draw(st.lists(st.integers(0, 1 << 17), max_size=3))),
        action_ids=tuple(ids),
        logprobs=tuple(draw(FLOATS) for _ in ids),
        observation=draw(TEXTS),
        action=draw(TEXTS),
        calls=tuple(draw(st.lists(st.dictionaries(TEXTS, JSON, max_size=2), max_size=2))),
        reward=draw(FLOATS.filter(lambda number: abs(number) < 1e300)),
        rewards=draw(st.dictionaries(TEXTS, FLOATS, max_size=2)),
        policy_version=draw(st.integers(0, 9)),
        executor=draw(st.sampled_from(["student", "teacher", "expert"])),
        temperature=draw(FLOATS),
        finish=draw(st.sampled_from(["stop", "length", "abort"])),
        state_before=draw(TEXTS),
        state_after=draw(TEXTS),
        env_s=draw(FLOATS),
        policy_s=draw(FLOATS),
    )


SEGMENTS = st.builds(
    Segment,
    turns=st.lists(turns(), max_size=2).map(tuple),
    inherited_ids=st.lists(st.integers(0, 99), max_size=2).map(tuple),
)
EPISODES = st.builds(
    Episode,
    id=TEXTS,
    env_id=TEXTS,
    env_kwargs=st.dictionaries(TEXTS, JSON, max_size=2),
    task=TASKS,
    group=TEXTS,
    replica=st.integers(0, 9),
    env_seed=st.integers(0, 1 << 31),
    policy_seed=st.integers(0, 1 << 31),
    segments=st.lists(SEGMENTS, max_size=2).map(tuple),
    outcome=st.sampled_from(Outcome),
    stop=st.sampled_from(Stop),
    success=st.booleans(),
    error=TEXTS,
    final_observation=TEXTS,
    metrics=st.dictionaries(TEXTS, FLOATS, max_size=2),
    attempts=st.integers(1, 3),
    wall_s=FLOATS,
)


def episode(number: int, text: str = "a ☃ \u2028 \n") -> Episode:
    turn = Turn(action_ids=(number,), logprobs=(-0.1,), observation=text, action="go", reward=0.1)
    segments = (Segment(turns=(turn,)),)
    return Episode(id=f"e{number}", env_id="toy", task=Maze(seed=number), segments=segments)


def write(path, count: int) -> list[bytes]:
    with RecordWriter(path, {"seed": 7}) as record:
        record.extend(episode(number) for number in range(count))
    return path.read_bytes().splitlines(keepends=True)


@settings(max_examples=150, deadline=None)
@given(EPISODES)
def test_an_episode_comes_back_from_json_bit_for_bit(original):
    data = json.loads(json.dumps(episode_to_json(original)))
    back = episode_from_json(data, Maze)
    assert back == original
    assert repr(back) == repr(original)  # -0.0 == 0.0, but its repr is another
    untyped = episode_from_json(data)
    assert (untyped.task.key, untyped.task.hidden) == (original.task.key, original.task.hidden)
    assert replace(untyped, task=original.task) == original
    assert json.dumps(episode_to_json(untyped)) == json.dumps(data)


@settings(max_examples=25, deadline=None)
@given(st.lists(EPISODES, max_size=3))
def test_a_record_gives_back_what_was_written_in_order(tmp_path_factory, episodes):
    path = tmp_path_factory.mktemp("record") / "episodes.jsonl"
    with RecordWriter(path, {"seed": 1}) as record:
        record.extend(episodes)
        end = record.position()
    assert [episode_from_json(row.raw, Maze) for row in read_records(path)] == episodes
    assert verify(path) == verify(path, end) == end
    assert read_header(path)["run"] == {"seed": 1}


def test_every_change_of_one_byte_is_refused_with_its_line(tmp_path):
    path = tmp_path / "episodes.jsonl"
    lines = write(path, 3)
    whole = b"".join(lines)
    ends = [sum(map(len, lines[: n + 1])) for n in range(len(lines))]
    for place in range(len(whole)):
        line = next(n for n, end in enumerate(ends, start=1) if place < end)
        byte = whole[place] ^ (1 if place % 2 else 0x2A)
        changed = whole[:place] + bytes([byte]) + whole[place + 1 :]
        with pytest.raises(RecordError) as refusal:
            list(prove(path, io.BytesIO(changed)))
        assert refusal.value.line == line, f"byte {place}"


def test_a_whitespace_that_json_would_forgive_is_refused(tmp_path):
    path = tmp_path / "episodes.jsonl"
    lines = write(path, 2)
    path.write_bytes(b"".join(lines).replace(b'"id":"e1"', b'"id": "e1"'))
    with pytest.raises(RecordError, match=r"line 3: changed"):
        list(read_records(path))


@pytest.mark.parametrize(
    ("order", "line"),
    [((0, 2, 1, 3), 2), ((0, 1, 3), 3), ((0, 1, 1, 2, 3), 3), ((1, 2, 3), 1), ((0, 3, 2, 1), 2)],
)
def test_a_moved_removed_or_doubled_line_is_refused_where_it_happened(tmp_path, order, line):
    path = tmp_path / "episodes.jsonl"
    lines = write(path, 3)
    path.write_bytes(b"".join(lines[n] for n in order))
    with pytest.raises(RecordError) as refusal:
        list(read_records(path))
    assert refusal.value.line == line
    assert f"line {line}" in str(refusal.value)


def test_lines_missing_at_the_end_are_seen_by_whoever_kept_the_position(tmp_path):
    path = tmp_path / "episodes.jsonl"
    lines = write(path, 3)
    end = verify(path)
    path.write_bytes(b"".join(lines[:-1]))
    assert verify(path).lines == 3
    with pytest.raises(RecordError, match="line 4: missing"):
        verify(path, end)


def test_a_line_of_another_run_is_refused_even_if_its_own_chain_is_whole(tmp_path):
    end = verify_after(tmp_path / "a.jsonl", 2)
    other = tmp_path / "b.jsonl"
    with RecordWriter(other, {"seed": 8}) as record:
        record.extend(episode(number) for number in range(2))
    with pytest.raises(RecordError, match="line 3: not the line"):
        verify(other, end)
    with pytest.raises(RecordError, match="line 3: not the line"):
        RecordWriter.resume(other, end)
    assert verify(other).lines == 3


def verify_after(path, count: int) -> Position:
    write(path, count)
    return verify(path)


def test_a_cut_line_is_refused_by_readers_and_dropped_by_resume(tmp_path):
    path = tmp_path / "episodes.jsonl"
    lines = write(path, 3)
    whole = b"".join(lines)
    for missing in range(1, len(lines[-1])):
        path.write_bytes(whole[:-missing])
        with pytest.raises(RecordError, match="line 4: cut short"):
            list(read_records(path))
        if missing % 40 == 1:
            with RecordWriter.resume(path) as record:
                record.append(episode(2))
            assert path.read_bytes() == whole


def test_resume_from_a_checkpoint_loses_and_doubles_nothing(tmp_path):
    path = tmp_path / "episodes.jsonl"
    with RecordWriter(path, {"seed": 7}) as record:
        record.extend([episode(0), episode(1)])
        checkpoint = Position(**json.loads(json.dumps(record.position().to_json())))
        record.append(episode(99))  # played after the checkpoint, so it will be played again
    with path.open("ab") as file:
        file.write(b'{"half a li')
    with RecordWriter.resume(path, checkpoint) as record:
        assert record.position() == checkpoint
        record.append(episode(2))
    assert [row.episode.id for row in read_records(path)] == ["e0", "e1", "e2"]


def test_resume_cuts_nothing_from_a_record_that_was_changed(tmp_path):
    path = tmp_path / "episodes.jsonl"
    lines = write(path, 3)
    changed = b"".join(lines).replace(b'"id":"e1"', b'"id":"e7"')
    path.write_bytes(changed)
    with pytest.raises(RecordError, match="line 3: changed"):
        RecordWriter.resume(path)
    assert path.read_bytes() == changed
    path.write_bytes(lines[0] + lines[1])
    with pytest.raises(RecordError, match="line 3: missing"):
        RecordWriter.resume(path, Position(999, 4, "0" * 64))


def append_for_ever(path, started):
    with RecordWriter(path, {"seed": 7}) as record:
        started.set()
        number = 0
        while True:
            record.append(episode(number, "long " * 2000))
            number += 1


def test_kill_9_leaves_whole_episodes_and_at_most_one_unfinished_line(tmp_path):
    path = tmp_path / "episodes.jsonl"
    context = multiprocessing.get_context("fork")
    started = context.Event()
    child = context.Process(target=append_for_ever, args=(path, started))
    child.start()
    assert started.wait(60)
    while path.stat().st_size < 200_000:
        assert child.is_alive()
    os.kill(child.pid, signal.SIGKILL)
    child.join(60)
    with RecordWriter.resume(path) as record:
        before = record.position().lines
        record.append(episode(before - 1, "long " * 2000))
    numbers = [int(row.episode.id[1:]) for row in read_records(path)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) == before


def test_a_full_disk_is_one_clear_error_and_the_record_stays_whole(tmp_path):
    path = tmp_path / "episodes.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RecordWriter(path, {"seed": 7}) as record:
        record.append(episode(0))
        whole = path.read_bytes()
        try:  # the kernel takes 100 bytes of the next line, then refuses the rest
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 100, before[1]))
            with pytest.raises(RecordError, match="The 1 episodes in it are safe; free space"):
                record.append(episode(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert path.read_bytes() == whole
        record.append(episode(1))
    assert [row.episode.id for row in read_records(path)] == ["e0", "e1"]


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "episodes.jsonl", "/proc/none/episodes.jsonl"):
        with pytest.raises(RecordError, match=r"cannot write the record: .*choose a folder"):
            RecordWriter(path)
    with pytest.raises(RecordError, match="cannot read the record: No such file"):
        list(read_records(tmp_path / "none.jsonl"))


def test_nothing_that_exists_is_overwritten(tmp_path):
    path = tmp_path / "episodes.jsonl"
    write(path, 1)
    notes = tmp_path / "notes.txt"
    notes.write_text("no newline here")
    for existing in (path, notes):
        before = existing.read_bytes()
        with pytest.raises(RecordError, match="there already is a file"):
            RecordWriter(existing)
        assert existing.read_bytes() == before


def test_a_header_that_a_crash_cut_short_is_written_anew(tmp_path):
    path = tmp_path / "episodes.jsonl"
    header = write(path, 1)[0]
    for length in (0, 3, len(header) - 1):
        path.write_bytes(header[:length])
        with pytest.raises(RecordError, match="line 1"):
            RecordWriter.resume(path)
        RecordWriter(path, {"seed": 7}).close()
        assert verify(path).lines == 1
        path.unlink()


def test_two_writers_of_one_record_are_refused(tmp_path):
    path = tmp_path / "episodes.jsonl"
    with RecordWriter(path), pytest.raises(RecordError, match="another process"):
        RecordWriter.resume(path)
    RecordWriter.resume(path).close()


def test_a_newer_schema_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "episodes.jsonl"
    lines = write(path, 1)
    path.write_bytes(b"".join(lines).replace(b"turnwise.episode/1", b"turnwise.episode/12"))
    for use in (verify, RecordWriter.resume, read_header, lambda path: list(read_records(path))):
        with pytest.raises(NewerSchema, match=r"episode/12.*pip install -U turnwise"):
            use(path)


@pytest.mark.parametrize("content", [b"", b"\n", b"hello\n", b'{"schema":"other/1"}\n', b"[1]\n"])
def test_a_file_that_is_no_record_is_refused_at_line_1(tmp_path, content):
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(content)
    for use in (verify, read_header, RecordWriter.resume):
        with pytest.raises(RecordError, match="line 1"):
            use(path)


def test_a_number_that_json_cannot_hold_is_refused_and_nothing_is_written(tmp_path):
    path = tmp_path / "episodes.jsonl"
    with RecordWriter(path) as record:
        before = path.read_bytes()
        with pytest.raises(ValueError, match="episode 'e0' cannot be recorded"):
            record.append(replace(episode(0), metrics={"loss": float("nan")}))
        assert path.read_bytes() == before


def test_a_whole_line_that_is_no_episode_is_refused_with_its_line(tmp_path):
    path = tmp_path / "episodes.jsonl"
    with RecordWriter(path) as record:
        record._write(b'{"id":"x"}')
    (row,) = read_records(path)
    with pytest.raises(RecordError, match="line 2: not an episode"):
        _ = row.episode


def test_a_task_whose_class_changed_is_refused_and_stays_readable():
    data = json.loads(canonical_json(episode_to_json(episode(3))))

    @dataclass(frozen=True, kw_only=True)
    class Other(Task):
        seed: int

    task = episode_from_json(data).task
    assert isinstance(task, RecordedTask)
    assert rebuild_task(task, Maze) == Maze(seed=3)
    with pytest.raises(TaskChanged, match="Other refuses the recorded task"):
        rebuild_task(task, Other)

    @dataclass(frozen=True, kw_only=True)
    class Wider(Maze):
        depth: int = 1

    with pytest.raises(TaskChanged, match="key was"):
        rebuild_task(task, Wider)


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_jq_reads_the_actions(tmp_path):
    path = tmp_path / "episodes.jsonl"
    write(path, 2)
    done = subprocess.run(["jq", "-r", ".turns[].action", path], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "go\ngo\n", "")
