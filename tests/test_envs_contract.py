"""The contract over every registered environment, and a broken environment for every law."""

import os
import time

import pytest
from broken_envs import (
    BROKEN,
    HangsAtReset,
    HangsInStep,
    HashesNames,
    HasNoTasks,
    Hidden,
    IsNamedByChance,
    KnowsTheDay,
    KnowsTheNanosecond,
    OrdersBySet,
    Overlaps,
    RaisesAtReset,
    RaisesElsewhere,
    RaisesWhenMade,
    SaysItIsFast,
    TellsTheTime,
)
from fakes import Guess, Parrot

from turnwise.agents.check_replay import NAME, check_replay
from turnwise.envs.check import check_env
from turnwise.envs.extras import MissingExtra
from turnwise.envs.names import UnknownName
from turnwise.envs.playing import Broken, Subject
from turnwise.envs.probes import ADVERSARY, LAWS, name_of
from turnwise.envs.probes.contract import fast_is_fast
from turnwise.envs.registry import list_envs
from turnwise.sandboxes.base import NoSafeSandbox

REGISTERED = [spec for spec in list_envs() if spec.id.startswith("turnwise/")]
SLOW_TAGS = {"sandbox", "browser", "web", "code"}
"""Of environments whose steps take milliseconds: checked with fewer at once in the quick test."""

IN_COMPANY = ("isolated from other environments", "isolated across threads")
"""Laws that look at all environments at once; the others look at as many in the quick test."""
OF_A_LEVEL = ("seeds are honoured", "rewards stay in range", "expert is accepted", "seeds differ")
"""Laws that one level of BabyAI may break and another may keep; `GoToLocal` is tried on all."""
OF_A_KIND = (*OF_A_LEVEL, "graders are steady", "snapshots restore", "no reward for claims")
"""Laws that one environment of the class `Mend` may break; `Repair` is tried on all."""
KINDRED = ("turnwise/RepairShell-v1", "turnwise/RepoRepair-v1")


def laws_of(id):
    """Which laws are tried on an environment; all if none is named."""
    if "BabyAI" in id and "GoToLocal" not in id:
        return OF_A_LEVEL
    return OF_A_KIND if id in KINDRED else ()


def checked(id, **how):
    try:
        return check_env(id, adversary=True, **how)
    except (MissingExtra, NoSafeSandbox) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("spec", REGISTERED, ids=lambda spec: spec.id)
def test_every_registered_environment_keeps_the_contract(spec):
    laws = laws_of(spec.id)
    slow = laws or SLOW_TAGS & {*spec.tags}
    size = {"seeds": range(1 if slow else 2), "concurrency": 4 if slow else 32, "law_s": 0.3}
    report = checked(spec.id, **size, laws=laws)
    assert report.ok, str(report)
    replayed = check_replay(spec.id, seeds=range(1 if slow else 2), concurrency=2)
    assert replayed.status == "pass", replayed


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [s for s in REGISTERED if SLOW_TAGS & {*s.tags} and s.id not in KINDRED],
    ids=lambda spec: spec.id,
)
def test_thirty_two_slow_environments_at_once_keep_the_contract(spec):
    report = checked(spec.id, seeds=range(1), concurrency=32, law_s=0.3, laws=IN_COMPANY)
    assert report.ok, str(report)


@pytest.mark.parametrize("make", [Guess, Parrot, lambda **more: Guess(actions="command", **more)])
def test_the_small_environments_of_the_tests_keep_the_contract(make):
    report = check_env(make, adversary=True)
    assert report.ok, str(report)
    assert [check.name for check in report.checks] == [name_of(law) for law in (*LAWS, *ADVERSARY)]


def test_every_law_is_shown_to_fail_by_an_environment_that_breaks_it():
    shown = {law for _, law in BROKEN} | {"fast is fast"}
    assert shown == {name_of(law) for law in (*LAWS, *ADVERSARY)} | {NAME}


@pytest.mark.parametrize(("env", "law"), BROKEN, ids=lambda part: getattr(part, "__name__", part))
def test_a_broken_law_is_found_and_says_how_to_mend_it(env, law):
    if law == NAME:
        check = check_replay(env, seeds=range(4), concurrency=2)
    else:
        (check,) = check_env(env, seeds=range(4), concurrency=4, laws=[law]).checks
    assert (check.name, check.status) == (law, "fail"), check
    assert check.detail and check.mend


def test_an_environment_that_is_slow_must_not_say_that_it_is_fast():
    with pytest.raises(Broken, match="the quickest step took"):
        fast_is_fast(Subject("slow", SaysItIsFast, [0], 2))


def test_a_law_that_hangs_is_given_up_named_and_placed_and_the_others_are_not_waited_for():
    began = time.monotonic()
    report = check_env(HangsInStep, deadline_s=1.0)
    assert time.monotonic() - began < 20
    late = [check for check in report.checks if check.overdue]
    assert [check.name for check in late] == ["gymnasium accepts", "info is complete"]
    assert "not done after 1 s in broken_envs.py:" in late[1].detail and "(look)" in late[1].detail
    assert {check.status for check in report.checks} == {"fail", "skip"}


def test_an_environment_that_hangs_at_its_start_is_reported_as_such():
    (check,) = check_env(HangsAtReset, deadline_s=0.5).checks
    assert (check.name, check.overdue, check.status) == ("starts", True, "fail")
    assert "in broken_envs.py:" in check.detail


@pytest.mark.parametrize(
    ("env", "where"),
    [(RaisesAtReset, "(setup)"), (RaisesWhenMade, "(__init__)"), (HasNoTasks, "has no tasks")],
)
def test_a_bug_that_keeps_an_environment_from_starting_is_a_broken_law_of_its_own(env, where):
    (check,) = check_env(env).checks
    assert (check.name, check.status, check.overdue) == ("starts", "fail", False)
    assert where in check.detail and check.mend
    theirs = env is not HasNoTasks
    assert ("broken_envs.py:" in check.detail) == ("broken_envs.py:" in check.mend) == theirs


def test_arguments_that_we_refuse_are_an_error_and_no_finding():
    with pytest.raises(ValueError, match="depth must lie in"):
        check_env("turnwise/Craft-v1", depth=99)
    with pytest.raises(UnknownName, match="no environment"):
        check_env("broken_envs:Nobody")


def test_a_bug_that_replay_meets_is_a_line_of_the_report_and_says_where():
    for seed in range(4):  # wherever between start and replay it is met
        RaisesElsewhere.made = seed
        check = check_replay(RaisesElsewhere, seeds=range(2), concurrency=2)
        assert check.status == "fail" and "made once too often" in check.detail
    assert "broken_envs.py:" in check.detail and "broken_envs.py:" in check.mend


def test_what_no_other_process_can_make_is_skipped_with_the_reason():
    (check,) = check_env(lambda: Guess(), laws=["same in another process"]).checks
    assert check.status == "skip" and "give an id" in check.detail
    (check,) = check_env(Hidden.Inner, laws=["same in another process"]).checks
    assert check.status == "skip"


@pytest.mark.parametrize(
    ("env", "cause"),
    [
        (HashesNames, "hash()"),
        (OrdersBySet, "a set"),
        (KnowsTheDay, "time"),
        (IsNamedByChance, "id"),
    ],
)
def test_what_differs_between_processes_is_put_down_to_its_cause(env, cause):
    (check,) = check_env(env, seeds=range(2), laws=["same in another process"]).checks
    assert cause in check.mend.partition(":")[0]


def test_a_clock_is_mended_by_what_the_environment_has_for_it():
    (check,) = check_env(KnowsTheDay, seeds=range(1), laws=["same in another process"]).checks
    assert "self.clock" in check.mend and "self.taped" in check.mend
    (check,) = check_env(KnowsTheNanosecond, seeds=range(1), laws=["seeds are honoured"]).checks
    assert check.status == "fail" and "self.clock" in check.mend and "self.taped" in check.mend


def test_an_environment_that_reads_the_time_through_its_tape_keeps_every_law():
    report = check_env(TellsTheTime, seeds=range(3), concurrency=3)
    assert report.ok, str(report)
    assert check_replay(TellsTheTime, seeds=range(3)).status == "pass"


def test_laws_can_be_chosen_by_name_and_a_wrong_name_finds_the_nearest():
    (check,) = check_env(Guess, laws=["seeds differ"]).checks
    assert check.name == "seeds differ"
    with pytest.raises(UnknownName, match="did you mean 'seeds differ'"):
        check_env(Guess, laws=["seed differs"])


def test_a_report_is_a_table_and_json():
    report = check_env(Overlaps, seeds=[0], concurrency=2)
    assert "fail  splits are disjoint" in str(report) and "mend: make splits" in str(report)
    value = report.to_json()
    assert value["env"] == "Overlaps" and value["ok"] is False
    assert {check["status"] for check in value["checks"]} == {"pass", "fail", "skip"}


def test_a_check_without_seeds_or_company_is_refused():
    with pytest.raises(ValueError, match="need a seed"):
        check_env(Guess, seeds=[])
    with pytest.raises(ValueError, match="concurrency >= 2"):
        check_env(Guess, concurrency=1)


def test_an_environment_that_was_made_can_be_checked_itself():
    assert check_env(Guess(), seeds=[0], concurrency=2).env == "Guess"
