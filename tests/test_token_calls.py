"""A tag that was spelled out is no call: in the rollout, in labels, in a replay and in a branch."""

from __future__ import annotations

import copy
import pickle
from collections import deque
from collections.abc import Sequence

import pytest
from fakes import Guess, Secret
from tokenizers import AddedToken

from turnwise.agents.codec import TAGS
from turnwise.agents.engines.base import GenOutput, GenRequest
from turnwise.agents.executors import ByChance
from turnwise.agents.labels import Labelling, play_labelled
from turnwise.agents.policy import LLMPolicy, ScriptedPolicy, expert
from turnwise.agents.record import RecordWriter, read_records
from turnwise.agents.renderer import Renderer
from turnwise.agents.replay import branch, execute, rescore
from turnwise.agents.rollout import jobs_for, play
from turnwise.agents.teachers import LLMTeacher
from turnwise.envs.builtin.nim import Nim, opponent
from turnwise.envs.calling import format_of
from turnwise.envs.calls import Written
from turnwise.envs.formats.command import COMMAND
from turnwise.envs.formats.hermes import HERMES
from turnwise.envs.seat import as_single_agent
from turnwise.envs.types import Episode
from turnwise.envs.wrappers import ActionSlips, ToolFailures
from turnwise.trainers.tiny import tiny_tokenizer

PLAIN = tiny_tokenizer([])
TAGGED = tiny_tokenizer([])
TAGGED.add_tokens([AddedToken(tag, normalized=False, special=True) for tag in TAGS])
RENDERER = Renderer(TAGGED)
STOP = RENDERER.stop_ids[0]
SUBMIT = HERMES.render("submit", {"number": 3})
LOOK = HERMES.render("look", {"number": 3})


def spelled(text: str) -> list[int]:
    """Return the ids of `text` in which no tag is a token."""
    return PLAIN.encode(text, add_special_tokens=False, split_special_tokens=True)


def meant(text: str) -> list[int]:
    """Return the ids of `text` in which every tag is its token."""
    return RENDERER.action_ids(text, "length")


class Dictated:
    """An engine that samples what it is told, action by action, and says nothing afterwards."""

    max_len = 100_000

    def __init__(self, *actions: Sequence[int]) -> None:
        self.actions, self.asked = actions, deque[GenRequest]()
        self.said: dict[str, int] = {}

    def submit(self, request: GenRequest) -> None:
        self.asked.append(request)

    def poll(self) -> list[GenOutput]:
        outputs = []
        while self.asked:
            session = self.asked.popleft().session
            turn = self.said[session] = self.said.get(session, -1) + 1
            ids = (*(self.actions[turn] if turn < len(self.actions) else ()), STOP)
            outputs.append(GenOutput(session, ids, (0.0,) * len(ids), "stop"))
        return outputs

    def end_session(self, session: str) -> None:
        pass


def policy_of(*actions: Sequence[int], renderer: Renderer = RENDERER, **more) -> LLMPolicy:
    return LLMPolicy(Dictated(*actions), renderer, max_new_tokens=200, **more)


def played(policy, make_env=Guess) -> Episode:
    tasks = make_env().tasks("train")[:1]
    (episode,) = play(jobs_for(tasks, run_seed=0, split="train"), make_env, policy)
    return episode


def codes(episode: Episode) -> list[list[str]]:
    """Return, turn by turn, the code of each call's error, or its name."""
    return [
        [call["error"].split()[0] if "error" in call else call["name"] for call in turn.calls]
        for turn in episode.turns
    ]


# A call that is spelled out, one that is meant and quotes one, one that says both.
QUOTING = f"I will not write {SUBMIT} but:\n"
EPISODE = (spelled(SUBMIT), [*spelled(QUOTING), *meant(LOOK)], meant(SUBMIT))


def test_a_call_that_is_spelled_out_is_answered_as_none_and_the_episode_goes_on():
    episode = played(policy_of(*EPISODE))
    assert codes(episode) == [["no_call"], ["look"], ["submit"]]
    assert [turn.action for turn in episode.turns] == [SUBMIT, QUOTING + LOOK, SUBMIT]
    assert all(type(turn.action) is str for turn in episode.turns)
    assert [bool(turn.token_calls) for turn in episode.turns] == [True, True, False]


def test_what_tokens_said_is_replayed_exactly_through_a_record(tmp_path):
    episode = played(policy_of(*EPISODE))
    with RecordWriter(tmp_path / "episodes.jsonl") as record:
        record.append(episode)
    (row,) = read_records(tmp_path / "episodes.jsonl")
    assert row.episode.turns == episode.turns
    assert ["token_calls" in turn for turn in row.raw["turns"]] == [True, True, False]
    assert execute(row.episode, Guess) is None
    assert not rescore(row.episode, Guess).changed and rescore(row.episode, Guess).complete


def test_a_branch_stands_where_the_tokens_led():
    episode = played(policy_of(*EPISODE))
    with branch(episode, 2, Guess) as fork:
        assert fork.env.episode.errors == ["no_call"]
        assert fork.observation == episode.turns[2].observation
        *_, terminated, _, _ = fork.env.step(SUBMIT)
    assert terminated


def test_without_tokens_for_its_tags_a_call_is_read_from_the_text():
    episode = played(policy_of(spelled(SUBMIT), renderer=Renderer(PLAIN)))
    assert codes(episode) == [["submit"]] and not episode.turns[0].token_calls


@pytest.mark.parametrize("renderer", [None, RENDERER])
def test_a_policy_that_writes_text_calls_by_its_text(renderer):
    quoting = ScriptedPolicy(lambda seat: f"So: {SUBMIT}", renderer=renderer)
    assert codes(played(quoting)) == [["submit"]]
    solved = played(ScriptedPolicy(expert, renderer=renderer))
    assert solved.success and execute(solved, Guess) is None


def label_of(ids: Sequence[int]) -> tuple[str, str]:
    """Return text and error of the label that a teacher gives by these tokens."""
    teacher = LLMTeacher(policy_of(ids, executor="teacher"))
    student = ScriptedPolicy(lambda seat: SUBMIT, renderer=RENDERER, executor="student")
    jobs = jobs_for([Secret(index=0)], run_seed=0, split="train")
    (episode,) = play_labelled(jobs, Guess, Labelling(student, teacher, ByChance(0.0)))
    (turn,) = episode.turns
    assert type(turn.label) is str
    return turn.label, turn.label_error


def test_a_label_that_only_spells_a_call_teaches_nothing():
    assert label_of(meant(SUBMIT)) == (SUBMIT, "")
    assert label_of(spelled(SUBMIT)) == (SUBMIT, "no_call")


def test_a_teacher_that_acts_is_read_by_its_tokens_too():
    teacher = LLMTeacher(policy_of(*EPISODE, executor="teacher"))
    student = ScriptedPolicy(expert, renderer=RENDERER)
    jobs = jobs_for([Secret(index=0)], run_seed=0, split="train")
    (episode,) = play_labelled(jobs, Guess, Labelling(student, teacher, ByChance(1.0)))
    assert codes(episode) == [["no_call"], ["look"], ["submit"]]
    assert [turn.label_error for turn in episode.turns] == ["no_call", "", ""]
    assert execute(episode, Guess) is None


def test_wrappers_hand_on_what_the_tokens_said_and_a_slip_replaces_it():
    handed = played(policy_of(*EPISODE), lambda: ToolFailures(Guess(), p=0.0))
    assert codes(handed) == [["no_call"], ["look"], ["submit"]]
    slipped = played(policy_of(*EPISODE), lambda: ActionSlips(Guess(), p=1.0, actions=[LOOK]))
    assert codes(slipped)[:3] == [["look"]] * 3


def seat():
    """Return a seat of a game, whose calls the game runs."""
    game = Nim(actions="hermes")
    return as_single_agent(game, agent="first", others={"second": opponent(game, 0.0)})


def test_in_a_game_a_spelled_call_is_no_move_either():
    text = seat().call_text("take", pile=1, count=1)
    episode = played(policy_of(spelled(text), meant(text)), seat)
    assert codes(episode)[:2] == [["no_call"], ["take"]] and execute(episode, seat) is None
    assert format_of(seat()) is HERMES and format_of(Guess(actions="command")) is COMMAND


def test_an_action_with_calls_of_its_own_survives_copies_and_snapshots():
    call = HERMES.parse(LOOK).calls
    action = Written("say", call)
    for other in (copy.copy(action), copy.deepcopy(action), pickle.loads(pickle.dumps(action))):
        assert (other, other.calls) == ("say", call) and type(str(other)) is str
    env = Guess()
    env.reset(seed=0, options={"task": Secret(index=0)})
    env.step(action)
    twin = env.fork()
    assert twin.episode.actions[0].calls == call and twin.episode.calls == env.episode.calls
