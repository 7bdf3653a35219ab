"""What the teacher would have done: a label for every visited turn, whoever acted.

    policy = Labelling(student, TextTeacher(expert, renderer=renderer), ByChance(0.6))
    for episode in play_labelled(jobs, make_env, policy): ...

A label is asked for when its turn begins and may come at any time until the episode is over; the
environment goes on meanwhile, and never sees it. Where the teacher acts, its action is the label.
A teacher that fails loses that label, and its turn to the student; both are on record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import sleep
from typing import Protocol

from turnwise.agents.executors import RollIn
from turnwise.agents.policy import Policy, Reply, Seat
from turnwise.agents.rollout import Job, Settings, play
from turnwise.envs.base import Env
from turnwise.envs.calling import Calling
from turnwise.envs.calls import calls_of
from turnwise.envs.schema import BadArgs
from turnwise.envs.types import Episode, Message, Turn

FAILED = "teacher_failed"
"""Begins the error of a label that the teacher owes: it raised, or did not answer in time."""
CUT = "cut"
"""The error of a label that was not ended within the tokens that an answer may have."""


@dataclass(frozen=True, slots=True)
class Label:
    """The teacher's action at one visited state."""

    text: str = ""
    ids: tuple[int, ...] | None = None
    """None where the teacher acted: those of the turn itself."""
    error: str = ""
    """Why nothing is to be learnt from it; empty if something is."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a teacher said to one `ask`."""

    seat: Seat
    turn: int
    label: Label
    news: Sequence[Message] | None = None
    """What it was to act on; None if it was asked for a label alone."""
    reply: Reply | None = None
    """Its action, if it was to act and did not fail."""


class Teacher(Protocol):
    """Acts, or says what it would do. `ask` and `poll` never block."""

    pause_s: float
    """Seconds between two polls where there is nothing else to do."""

    def ask(self, seat: Seat, news: Sequence[Message] | None = None) -> None:
        """Ask for the action at the present state of `seat`, as a label.

        Args:
            news: given, the teacher is to act on it, and nobody has read it yet.
        """

    def poll(self) -> list[Answer]:
        """Do a bounded piece of work and return what was answered."""

    def close(self, seat: Seat) -> None:
        """The episode is over: it does not act any more; labels that were asked for still come."""

    def drop(self) -> None:
        """Forget every label that is still to come."""
        ...


def every_turn(seat: Seat) -> bool:
    """Ask for a label wherever the student acts (DAgger)."""
    return True


def own_turns(seat: Seat) -> bool:
    """Never ask: the labels are what the teacher did itself (SFT, Guided-OPD)."""
    return False


class Labelling:
    """A policy in which student and teacher take turns, and the teacher labels.

    Args:
        student: acts where `roll_in` says no, and where the teacher fails to act.
        teacher: acts where it says yes.
        roll_in: who acts at which turn; see `turnwise.agents.executors`.
        wanted: whether to ask for a label of a turn that the student takes.
    """

    def __init__(
        self,
        student: Policy,
        teacher: Teacher,
        roll_in: RollIn,
        wanted: Callable[[Seat], bool] = every_turn,
    ) -> None:
        self.student, self.teacher = student, teacher
        self.roll_in, self.wanted = roll_in, wanted
        self._asked: dict[str, set[int]] = {}
        self._labels: dict[str, dict[int, Label]] = {}

    def submit(self, seat: Seat, news: Sequence[Message]) -> None:
        """Ask whoever acts this turn, and the teacher for its label."""
        if self.roll_in(seat):
            self._ask(seat, news)
            return
        self.student.submit(seat, news)
        if self.wanted(seat):
            self._ask(seat, None)

    def _ask(self, seat: Seat, news: Sequence[Message] | None) -> None:
        self._asked.setdefault(seat.key, set()).add(seat.turn)
        self.teacher.ask(seat, news)

    def poll(self) -> list[tuple[Seat, Reply]]:
        """Poll both and keep the labels."""
        replies = []
        for answer in self.teacher.poll():
            self._keep(answer)
            if answer.reply is not None:
                replies.append((answer.seat, answer.reply))
            elif answer.news is not None:
                self.student.submit(answer.seat, answer.news)
        return [*replies, *self.student.poll()]

    def _keep(self, answer: Answer) -> None:
        key = answer.seat.key
        self._asked.get(key, set()).discard(answer.turn)
        self._labels.setdefault(key, {})[answer.turn] = answer.label

    def close(self, seat: Seat) -> None:
        """Tell both; labels may still come, but not of a turn that was left open."""
        self._asked.get(seat.key, set()).discard(seat.turn)
        self.teacher.close(seat)
        self.student.close(seat)

    def owes(self, key: str) -> bool:
        """Return whether a label of the seat `key` is still to come."""
        return bool(self._asked.get(key))

    def labels(self, key: str) -> Mapping[int, Label]:
        """Hand over the labels of a seat, by turn, and forget them."""
        self._asked.pop(key, None)
        return self._labels.pop(key, {})

    def drop(self) -> None:
        """Forget every label, those to come as well."""
        self.teacher.drop()
        self._asked.clear()
        self._labels.clear()


def play_labelled(
    jobs: Iterable[Job],
    make_env: Callable[[], Env],
    policy: Labelling,
    settings: Settings | None = None,
) -> Iterator[Episode]:
    """Play every job and yield its episode, labelled, as soon as its last label is there.

    Raises:
        Whatever `play` raises.
    """
    waiting: list[Episode] = []
    try:
        for episode in play(jobs, make_env, policy, settings):
            waiting.append(episode)
            yield from _complete(waiting, policy)
        while waiting:
            policy.poll()
            yield from _complete(waiting, policy)
            sleep(policy.teacher.pause_s)
    finally:
        policy.drop()


def _complete(waiting: list[Episode], policy: Labelling) -> list[Episode]:
    """Take the episodes that wait for no label out of `waiting`, and return them labelled."""
    done = [episode for episode in waiting if not policy.owes(seat_key(episode))]
    waiting[:] = [episode for episode in waiting if policy.owes(seat_key(episode))]
    return [labelled(episode, policy.labels(seat_key(episode))) for episode in done]


def seat_key(episode: Episode) -> str:
    """Return the key of the seat in which an episode was played."""
    return episode.id if episode.attempts == 1 else f"{episode.id}#{episode.attempts}"


def labelled(episode: Episode, labels: Mapping[int, Label]) -> Episode:
    """Return `episode` with its labels, by turn; those of turns that never were are left out."""
    segments, first = [], 0
    for segment in episode.segments:
        turns = tuple(_with(t, labels.get(first + i)) for i, t in enumerate(segment.turns))
        segments.append(replace(segment, turns=turns))
        first += len(turns)
    return replace(episode, segments=tuple(segments))


def _with(turn: Turn, label: Label | None) -> Turn:
    if label is None:
        return turn
    if label.ids is not None:
        return replace(turn, label=label.text, label_ids=label.ids, label_error=label.error)
    error = CUT if turn.finish == "length" else label.error
    return replace(turn, label=turn.action, label_ids=turn.action_ids, label_error=error)


def misspelt(seat: Seat, action: str) -> str:
    """Return the code of what is wrong with the calls of an action, or nothing.

    An environment without tools takes any text.
    """
    world = getattr(seat.env, "unwrapped", seat.env)
    if not isinstance(world, Calling):
        return ""
    for call in calls_of(action, world.format):
        if call.code:
            return call.code
        if (tool := world.parts.tools.get(call.name)) is None:
            return "unknown_tool"
        try:
            tool.bind(call)
        except BadArgs:
            return "bad_args"
    return ""
