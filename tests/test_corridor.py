"""Laws of Corridor: what opens a stage follows from its task, and each knob does what it says."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.agents.policy import ScriptedPolicy, expert, random_tool
from turnwise.agents.rollout import jobs_for, play
from turnwise.envs.builtin.corridor import DEEPEST, Corridor, task_stages
from turnwise.envs.builtin.corridor_world import BACK, CLUES, SYMBOLS, VERBS

RELAXED = settings(deadline=None, max_examples=40)


def begin(index=0, seed=0, split="train", **knobs):
    env = Corridor(**knobs)
    env.reset(seed=seed, options={"task": env.tasks(split)[index]})
    return env


def wrong(env):
    """Return an action that is not the right one."""
    verb, argument = env.expert().split()
    return f"{verb} {(int(argument) + 1) % env.symbols}"


def played(act, n=100, **knobs):
    env = Corridor(**knobs)
    jobs = jobs_for(env.tasks("test")[:n], run_seed=0, split="test")
    return list(play(jobs, lambda: Corridor(**knobs), ScriptedPolicy(act)))


@pytest.mark.parametrize("knobs", [{}, {"phased": True, "stages": 12}, {"progress": 0.0}])
@pytest.mark.parametrize("split", Corridor.splits)
def test_the_expert_opens_every_stage_in_as_many_turns_and_earns_exactly_one(split, knobs):
    env = Corridor(**knobs)
    for task in env.tasks(split)[:100]:
        env.reset(seed=0, options={"task": task})
        steps = [env.step(env.expert()) for _ in range(env.stages)]
        assert math.isclose(sum(step[1] for step in steps), 1.0)
        assert steps[-1][2] and steps[-1][4]["success"] and not any(s[2] for s in steps[:-1])


def test_an_answer_can_be_computed_from_what_was_read_so_far():
    for index in range(50):
        clue = None
        for stage in task_stages(Corridor(stages=12).tasks("dev")[index]):
            verb, symbol, *shown = stage.text.split()
            clue = CLUES.index(shown[0]) if shown else clue
            assert stage.action == f"{verb} {(SYMBOLS.index(symbol) + clue) % 3}"


def test_phases_have_a_verb_and_an_arithmetic_each():
    env = Corridor(stages=12, phased=True)
    seen = {}
    for task in env.tasks("train")[:300]:
        stages = task_stages(task)
        assert [s.verb for s in stages] == [v for v in VERBS for _ in range(4)]
        for stage in stages:
            seen.setdefault(stage.verb, {})[stage.symbol, stage.clue] = stage.answer
    tables = [tuple(sorted(seen[verb].items())) for verb in VERBS]
    assert len(set(tables)) == 3, "what opens an early stage does not open a late one"


@RELAXED
@given(st.integers(0, 3), st.lists(st.booleans(), max_size=6))
def test_a_wrong_action_leads_jump_turns_deep_and_right_ones_lead_out(jump, rights):
    env = begin(jump=jump, turns=100)
    env.step(wrong(env))
    depth = jump
    for right in rights:
        assert env.depth == depth
        if depth == 0:
            break
        assert env.kind == "off" and env.expert().split()[0] == BACK
        env.step(env.expert() if right else wrong(env))
        depth = depth - 1 if right else min(depth + 1, DEEPEST)
    for _ in range(env.depth):
        env.step(env.expert())
    assert env.kind == "on" and env.at == 0


def test_a_failure_changes_nothing_hides_the_stage_and_wants_the_same_again():
    env = begin(p_fail=1.0)
    action, before = env.expert(), env.at
    text, reward, *_, info = env.step(action)
    assert text.startswith("error") and reward == 0 and info["kind"] == "failed"
    assert (env.at, env.expert()) == (before, action)


def test_what_slips_is_not_what_was_done():
    env = begin(p_slip=1.0, stages=24)
    moved = 0
    for _ in range(40):
        before = env.at
        env.step(env.expert() if not env.depth else "back 0")
        moved += env.at > before
    assert moved < 15, "the right action is played by chance alone"


@pytest.mark.parametrize(("knobs", "low", "high"), [({"p_fail": 0.3}, 0.2, 0.4), ({}, 0, 0)])
def test_failures_are_as_frequent_as_asked_for(knobs, low, high):
    turns = [turn for episode in played(expert, **knobs) for turn in episode.turns[1:]]
    assert low <= sum(turn.kind == "failed" for turn in turns) / len(turns) <= high


def test_luck_follows_from_the_seed_and_the_turn_whatever_is_done():
    one, other = (begin(seed=5, p_fail=0.5, turns=50) for _ in range(2))
    for _ in range(20):
        one.step(wrong(one))
        other.step("")
        assert one.failed == other.failed


def test_progress_is_paid_once_and_told_at_the_end():
    env = begin(turns=12, jump=1, progress=1.0)
    paid = 0.0
    for act in (Corridor.expert, wrong, Corridor.expert) * 4:
        _, reward, _, cut, info = env.step(act(env))
        paid += reward
    assert cut and math.isclose(paid, info["metrics"]["progress"]) and 0 < paid < 1
    assert not info["success"]


def test_paid_by_the_end_alone_nothing_is_paid_before():
    env = begin(progress=0.0)
    assert [env.step(env.expert())[1] for _ in range(8)] == [0.0] * 7 + [1.0]


def test_the_end_is_for_whoever_arrives_and_chance_earns_less_than_is_declared():
    assert all(e.success for e in played(expert))
    lost = played(lambda seat: "", p_slip=0.3, progress=1.0)
    assert sum(e.reward for e in lost) / len(lost) <= Corridor(p_slip=0.3).chance_reward
    assert sum(e.success for e in played(random_tool)) == 0


def test_every_turn_of_a_record_has_the_kind_of_what_was_read():
    kinds = {"lost": "off", "error": "failed"}
    turns = [t for e in played(random_tool, p_fail=0.2, p_slip=0.1) for t in e.turns]
    assert {turn.kind for turn in turns} == {"on", "off", "failed"}
    for turn in turns:
        assert turn.kind == kinds.get(turn.observation.split()[0], "on")


def test_equal_states_have_equal_hashes_whatever_led_there():
    one, other = begin(jump=1), begin(jump=1)
    one.step(wrong(one))
    off = one.state_hash()
    one.step(one.expert())
    assert one.state_hash() == other.state_hash() != off
    one.step(one.expert())
    assert one.state_hash() != other.state_hash()


def test_its_words_are_all_that_is_ever_said():
    words = set(Corridor.words)
    for episode in played(random_tool, symbols=5, p_fail=0.2, phased=True):
        for turn in episode.turns:
            assert set(turn.observation.split()) | set(turn.action.split()) <= words


@pytest.mark.parametrize(
    "knobs", [{"stages": 0}, {"symbols": 6}, {"recall": 0}, {"jump": 4}, {"p_fail": 2}]
)
def test_a_knob_out_of_range_is_refused_by_name(knobs):
    with pytest.raises(ValueError, match=f"{next(iter(knobs))} must"):
        Corridor(**knobs)
