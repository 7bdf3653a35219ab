"""Who acts: a language model, a scripted expert, chance, nobody, or a mixture by the turn.

A policy is asked for one action per turn and answers when it can; it never waits for another
episode. Scripted policies answer at once; with a renderer they also write the tokens of what they
do, so that a demonstration and a sampled episode are the same thing.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

from turnwise.agents.engines.base import Engine, GenOutput, GenRequest, Sampling
from turnwise.agents.ledger import ContextFull, Ledger
from turnwise.agents.parsers import written
from turnwise.agents.renderer import Renderer
from turnwise.envs.base import Env
from turnwise.envs.calling import format_of
from turnwise.envs.formats.hermes import HERMES
from turnwise.envs.seeds import derive
from turnwise.envs.types import Message

Executor = Literal["student", "teacher", "expert"]


@dataclass(slots=True, eq=False)
class Seat:
    """One live episode, as its policy sees it."""

    key: str
    """Unique among live episodes; the engine's session."""
    env: Env
    """For experts, which look at the state. A language model reads messages alone."""
    seed: int
    ledger: Ledger
    messages: list[Message] = field(default_factory=list)
    """The conversation so far: actions, and what was just read."""
    tools: Sequence[Any] = ()
    turn: int = 0


class Reply(NamedTuple):
    """One action."""

    text: str
    """As the environment takes it: a `Written` where its tokens say more than its text."""
    executor: Executor = "student"
    full: bool = False
    """There was no room for an action: the episode is over, and `text` is empty."""


class Policy(Protocol):
    """Chooses actions. `submit` and `poll` never block."""

    def submit(self, seat: Seat, news: Sequence[Message]) -> None:
        """Ask for the next action of `seat`, which has just read `news`."""

    def poll(self) -> list[tuple[Seat, Reply]]:
        """Do a bounded piece of work and return the actions that are ready."""

    def close(self, seat: Seat) -> None:
        """The episode is over, or given up: free what it holds."""


def read(seat: Seat, renderer: Renderer, news: Sequence[Message]) -> bool:
    """Write `news` into the ledger of `seat`; return False if they do not fit.

    The chat template is applied once, to the opening. Later messages are appended, or, where the
    template would rewrite the history or the agent is made to forget it, start an explicit branch.
    """
    try:
        if not seat.ledger.ids:
            seat.ledger.start(renderer.open(news, seat.tools))
        elif renderer.extends(news):
            stopped = seat.ledger.ids[-1] in renderer.stop_ids
            seat.ledger.context(renderer.delta(news, "stop" if stopped else "length"))
        else:
            cause = "rewrite" if renderer.recall is None else "recall"
            seat.ledger.branch(renderer.rewrite(seat.messages, seat.tools), cause)
    except ContextFull:
        return False
    return seat.ledger.room is None or seat.ledger.room > 0


class LLMPolicy:
    """A language model behind an engine.

    Args:
        engine: samples tokens; see `turnwise.agents.engines.base`.
        renderer: messages to tokens for the engine's model.
        temperature: of sampling; 0 is greedy.
        max_new_tokens: per action.
        executor: who is on record as having acted; policy gradients are for the student alone.
    """

    def __init__(
        self,
        engine: Engine,
        renderer: Renderer,
        *,
        temperature: float = 1.0,
        max_new_tokens: int = 64,
        executor: Executor = "student",
    ) -> None:
        self.engine, self.renderer, self.temperature = engine, renderer, temperature
        self.executor: Executor = executor
        self.sampling = Sampling(max_new_tokens, temperature, renderer.stop_ids)
        self._asked: dict[str, Seat] = {}
        self._full: deque[Seat] = deque()

    def submit(self, seat: Seat, news: Sequence[Message]) -> None:
        """Render what is new and queue a request for it."""
        if not read(seat, self.renderer, news) or (room := self.room(seat.ledger)) < 1:
            self._full.append(seat)
            return
        self._asked[seat.key] = seat
        seed = seat.seed * 4096 + seat.turn
        self.engine.submit(GenRequest(seat.key, seat.ledger.ids, self.at_most(room), seed))

    def poll(self) -> list[tuple[Seat, Reply]]:
        """Advance the engine by one step."""
        return self.take(self.engine.poll() if self._asked else ())

    def take(self, outputs: Iterable[GenOutput]) -> list[tuple[Seat, Reply]]:
        """Write what the engine sampled into the ledgers and return it as actions."""
        replies = [(seat, Reply("", self.executor, full=True)) for seat in self._full]
        self._full.clear()
        for output in outputs:
            seat = self._asked.pop(output.session)
            seat.ledger.sampled(
                output.token_ids,
                output.logprobs,
                output.finish,
                output.versions[-1][0] if output.versions else 0,
                temperature=self.temperature or 1.0,
                versions=output.versions,
            )
            action = self.written(seat, output.token_ids)
            replies.append((seat, Reply(action, self.executor)))
        return replies

    def written(self, seat: Seat, ids: Sequence[int]) -> str:
        """Return sampled tokens as an action in the environment of `seat`."""
        return written(ids, self.renderer, format_of(seat.env))

    def at_most(self, room: int) -> Sampling:
        """Return how to draw an action where `room` tokens fit."""
        return replace(self.sampling, max_tokens=min(self.sampling.max_tokens, room))

    def room(self, ledger: Ledger) -> int:
        """Tokens that fit into both the ledger and the engine's context."""
        room = self.engine.max_len - len(ledger.ids)
        return room if ledger.room is None else min(room, ledger.room)

    def close(self, seat: Seat) -> None:
        """Free the episode's cache."""
        self._asked.pop(seat.key, None)
        self.engine.end_session(seat.key)


Act = Callable[[Seat], str]
"""The text of an action, chosen from the seat alone."""


def said(seat: Seat, renderer: Renderer | None, text: str, executor: Executor) -> Reply:
    """Write the tokens of an action that was not sampled, if there is a renderer; return it."""
    if renderer is not None:
        ids = renderer.action_ids(text)
        try:
            seat.ledger.sampled(ids, [0.0] * len(ids), "stop", 0)
        except ContextFull:
            return Reply("", executor, full=True)
    return Reply(text, executor)


class ScriptedPolicy:
    """Acts by a function, at once.

    Args:
        act: chooses the action.
        renderer: write the tokens too, as a demonstration; they carry a log-probability of 0 and
            an executor that is not the student, so no policy gradient ever uses them.
        executor: who is on record as having acted.
    """

    def __init__(
        self, act: Act, *, renderer: Renderer | None = None, executor: Executor = "expert"
    ) -> None:
        self.act, self.renderer, self.executor = act, renderer, executor
        self._ready: list[tuple[Seat, Reply]] = []

    def submit(self, seat: Seat, news: Sequence[Message]) -> None:
        """Choose now; the answer comes from the next `poll`."""
        if self.renderer is not None and not read(seat, self.renderer, news):
            self._ready.append((seat, Reply("", self.executor, full=True)))
            return
        self._ready.append((seat, said(seat, self.renderer, self.act(seat), self.executor)))

    def poll(self) -> list[tuple[Seat, Reply]]:
        """Return what was chosen since the last call."""
        ready, self._ready = self._ready, []
        return ready

    def close(self, seat: Seat) -> None:
        """Nothing is held."""
        self._ready = [(other, reply) for other, reply in self._ready if other is not seat]


def expert(seat: Seat) -> str:
    """Do what the environment's own expert does."""
    act = getattr(seat.env, "expert", None)
    if not callable(act):
        raise TypeError(f"{type(seat.env).__name__} has no expert(); demonstrations need one")
    answer: str = act()
    return answer


def noop(seat: Seat) -> str:
    """Say nothing."""
    return ""


def random_tool(seat: Seat) -> str:
    """Call a tool at random, its text arguments taken from words that were seen: the floor."""
    rng = random.Random(derive(seat.seed, "random", seat.turn))
    random_action = getattr(seat.env, "random_action", None)
    if random_action is not None:
        return random_action(rng)
    if not seat.tools:
        # The space draws from a generator of its own, which nobody has seeded.
        seat.env.action_space.seed(rng.randrange(2**31))
        return seat.env.action_space.sample()
    function = rng.choice(list(seat.tools))["function"]
    words = [w for m in seat.messages for w in m["content"].split()] or ["x"]
    properties = function["parameters"]["properties"]
    args = {name: _random_value(rng, schema, words) for name, schema in properties.items()}
    if hasattr(seat.env, "call_text"):
        return seat.env.call_text(function["name"], **args)
    return HERMES.render(function["name"], args)  # tools offered without a `ToolEnv`


def _random_value(rng: random.Random, schema: dict[str, Any], words: Sequence[str]) -> Any:
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kind = schema.get("type", "string")
    if kind == "boolean":
        return rng.random() < 0.5
    if kind in ("integer", "number"):
        return rng.randrange(10)
    return rng.choice(words) if kind == "string" else [] if kind == "array" else {}


class MixturePolicy:
    """Two policies, one of which acts by the turn.

    Args:
        student: acts where `teaches` says no.
        teacher: acts where it says yes. Give a scripted teacher the student's renderer.
        teaches: decides for a seat about to act. Draw from `derive(seat.seed, "mix", seat.turn)`
            and the choice is the same under any concurrency; see `bernoulli`.
    """

    def __init__(self, student: Policy, teacher: Policy, teaches: Callable[[Seat], bool]) -> None:
        self.student, self.teacher, self.teaches = student, teacher, teaches

    def submit(self, seat: Seat, news: Sequence[Message]) -> None:
        """Ask whoever acts this turn."""
        (self.teacher if self.teaches(seat) else self.student).submit(seat, news)

    def poll(self) -> list[tuple[Seat, Reply]]:
        """Poll both."""
        return [*self.teacher.poll(), *self.student.poll()]

    def close(self, seat: Seat) -> None:
        """Tell both."""
        self.teacher.close(seat)
        self.student.close(seat)


def bernoulli(beta: float) -> Callable[[Seat], bool]:
    """Return a `teaches` that says yes with probability `beta`, by seed and turn alone."""
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is a probability, got {beta}")
    return lambda seat: derive(seat.seed, "mix", seat.turn) < beta * 2**31
