"""Laws of snapshots: an episode goes on from the bytes as if it had never stopped."""

from __future__ import annotations

import threading

import pytest
from boxes import need_bubblewrap
from fakes import Guess, Parrot
from toys import Walks

from turnwise.envs import make
from turnwise.envs.base import EndedEarly
from turnwise.envs.code_env import CodeEnv
from turnwise.envs.snapshot import RestoreDiverged, Unsavable, WrongSnapshot
from turnwise.envs.tools import reward, tool
from turnwise.envs.types import Task


class Dice(Guess):
    """Draws from both generators at every turn, and keeps a method of its own and a cache."""

    unsaved = ("cache",)
    made = 0

    def setup(self, task, rng):
        self.rolls, self.last = [], self.roll
        self.cache = threading.Lock()
        return super().setup(task, rng)

    def restored(self):
        self.cache = threading.Lock()

    @tool
    def roll(self) -> str:
        """Roll two dice."""
        self.rolls.append((self.rng.randrange(6), int(self.np_random.integers(6))))
        self.bonus = sum(map(sum, self.rolls))
        return f"{self.rolls[-1]} {self.cache.locked()}"


DICE = f"{__name__}:Dice"


class Dice2(Dice):
    pass


def underway(env, turns=3):
    env.reset(seed=5)
    for _ in range(turns):
        env.step(env.call_text("roll"))
    return env


def rest(env, turns=3):
    told = [env.step(env.call_text("roll"))[0] for _ in range(turns)]
    return [*told, env.turn, env.bonus, env.episode.n_turns, env.episode.actions]


def test_an_episode_goes_on_alike_in_the_same_and_in_a_fresh_environment():
    env = underway(Dice())
    saved = env.snapshot()
    expected = rest(env)
    env.restore(saved)
    assert rest(env) == expected
    fresh = Dice()
    fresh.restore(saved)
    assert rest(fresh) == expected


def test_what_an_episode_lacked_it_lacks_again():
    env = Dice()
    env.reset(seed=5)
    saved = env.snapshot()
    env.step(env.call_text("roll"))
    assert env.bonus >= 0
    env.restore(saved)
    assert not hasattr(env, "bonus")


def test_an_ended_episode_and_one_that_never_began_are_restored_as_such():
    env, fresh = Parrot(), Parrot()
    never = env.snapshot()
    env.reset(seed=1)
    env.step(env.expert())
    fresh.restore(env.snapshot())
    for ended in (fresh, env):
        with pytest.raises(Exception, match="call reset"):
            ended.step("")
    env.restore(never)
    assert not hasattr(env, "word")


def test_a_method_that_is_kept_is_bound_to_the_environment_it_was_restored_in():
    env, fresh = underway(Dice()), Dice()
    fresh.restore(env.snapshot())
    assert fresh.last.__self__ is fresh and env.last.__self__ is env


def test_a_fork_goes_on_alike_and_shares_nothing():
    env = underway(make(DICE, max_turns=9))
    fork, other = env.fork(), env.fork()
    assert (fork.env_id, fork.env_kwargs, fork.max_turns) == (DICE, {"max_turns": 9}, 9)
    expected = rest(fork)
    assert len(env.rolls) == 3 and rest(env) == expected == rest(other)


def test_an_environment_that_was_not_made_by_id_is_forked_with_its_arguments():
    env = Walks(length=7)
    env.reset(seed=0)
    env.step("a")
    fork = env.fork()
    assert (fork.length, fork.turn, fork.right) == (7, 1, 1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: make(f"{__name__}:Dice2"), "of id '.*:Dice'; this is id '.*:Dice2'"),
        (lambda: make(DICE, max_turns=4), "arguments .*max_turns.*this is .*4"),
        (Dice, "of id '.*:Dice'; this is id ''"),
        (Guess, "of id"),
    ],
)
def test_bytes_of_another_environment_are_refused_and_change_nothing(other, message):
    saved = underway(make(DICE)).snapshot()
    env = other()
    before = dict(vars(env))
    with pytest.raises(WrongSnapshot, match=message):
        env.restore(saved)
    assert vars(env) == before


def test_arguments_that_are_the_defaults_are_equal_to_none_at_all():
    Guess(actions="hermes").restore(Guess().snapshot())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda saved: b"pickle", "no snapshot"),
        (lambda saved: saved.replace(b'"version": 1', b'"version": 9'), "version 9.*reads 1"),
        (lambda saved: saved[:-3], "cut or changed"),
        (lambda saved: saved[:-9] + b"x" + saved[-8:], "cut or changed"),
    ],
)
def test_damaged_bytes_are_refused_before_they_are_unpickled(damage, message):
    env = underway(Dice())
    with pytest.raises(WrongSnapshot, match=message):
        env.restore(damage(env.snapshot()))


def test_what_cannot_be_pickled_is_named_with_the_way_out():
    env = underway(Dice())
    env.stream = threading.Lock()
    with pytest.raises(Unsavable, match=r"Dice\.stream cannot .*`unsaved`.*snapshot = restore"):
        env.snapshot()


def test_an_environment_can_offer_no_snapshots():
    class Closed(Guess):
        snapshot = restore = None

    env = Closed()
    env.reset(seed=0)
    with pytest.raises(Unsavable, match="offers no snapshots"):
        env.fork()


def test_fast_forward_plays_recorded_actions_and_says_where_they_do_not_fit():
    env, other = underway(Dice()), Dice()
    other.reset(seed=5)
    other.fast_forward(env.episode.actions)
    assert other.rolls == env.rolls
    other.fast_forward([env.call_text("submit", number=0)])
    other.reset(seed=5)
    with pytest.raises(EndedEarly, match="after 1 of 2 actions") as raised:
        other.fast_forward([env.call_text("submit", number=0), env.call_text("roll")])
    assert raised.value.turn == 1


def test_the_episode_of_an_unseeded_reset_can_be_played_again_by_its_seed():
    env, again = Dice(), Dice()
    env.reset(seed=1)
    secrets = []
    for _ in range(3):
        env.reset()
        told = [env.step(env.call_text("roll"))[0] for _ in range(4)]
        again.reset(seed=env.np_random_seed)
        assert [again.step(env.call_text("roll"))[0] for _ in range(4)] == told
        secrets.append(env.np_random_seed)
    assert len(set(secrets)) == 3
    env.reset(seed=1)
    assert [env.reset() and env.np_random_seed for _ in range(3)] == secrets


class Boxed(CodeEnv):
    """Counts in a kernel; tells the time where it is asked to."""

    backend = "bubblewrap"
    sloppy = False

    def tasks(self, split):
        return [Task(hidden={"split": self.known_split(split)})]

    def setup(self, task, rng):
        return "Count."

    @tool
    def when(self) -> str:
        """Tell the time."""
        import time

        return f"{time.time_ns() if self.sloppy else self.clock.now()}"

    @reward()
    def nothing(self, episode) -> float:
        return 0.0


def test_a_boxed_episode_is_restored_with_its_kernel_its_shell_its_files_and_its_time():
    need_bubblewrap()
    env = Boxed()
    try:
        env.reset(seed=0)
        said = env.step(env.call_text("when"))[0]
        env.step(env.call_text("python", code="n = 41"))
        env.step(env.call_text("bash", command="x=7; echo hi > f"))
        fork = env.fork()
        try:
            assert fork.episode.observations[0] == said
            assert fork.box is not env.box
            assert fork.step(env.call_text("python", code="n += 1; print(n)"))[0] == "42"
            assert fork.step(env.call_text("bash", command="echo $x; cat f"))[0] == "7\nhi"
            assert env.step(env.call_text("python", code="print(n)"))[0] == "41"
        finally:
            fork.close()
    finally:
        env.close()


def test_a_boxed_episode_that_depends_on_more_than_its_actions_is_not_restored():
    need_bubblewrap()
    env = Boxed()
    env.sloppy = True
    env.reset(seed=0)
    env.step(env.call_text("when"))
    with pytest.raises(RestoreDiverged, match=r"turn 0 was answered .*self\.clock"):
        env.restore(env.snapshot())
    env.close()
    with pytest.raises(Unsavable, match="call reset"):
        Boxed().snapshot()
