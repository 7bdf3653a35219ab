"""Teachers: a scripted expert, a black box that answers in text, a language model.

`TextTeacher(expert, renderer=...)` looks at the state and answers at once, before anybody acts.
With `workers` the function is called on threads, with the messages alone: a server's model. A
language model in this process shares one cache between what it does and what it would do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from turnwise.agents.engines.base import EngineError, GenOutput, GenRequest
from turnwise.agents.faults import in_one_line
from turnwise.agents.labels import CUT, FAILED, Answer, Label, misspelt
from turnwise.agents.ledger import Ledger
from turnwise.agents.policy import Act, Executor, LLMPolicy, Reply, Seat, read, said
from turnwise.agents.renderer import Renderer
from turnwise.envs.seeds import derive
from turnwise.envs.types import Message


@dataclass(slots=True, eq=False)
class _Asked:
    """One question to a teacher."""

    seat: Seat
    turn: int
    prompt: list[int]
    """What the label follows; empty where the teacher acts."""
    news: Sequence[Message] | None
    room: int | None = None
    since: float = field(default_factory=lambda: monotonic())
    begun: float | None = None
    """When a thread began to answer."""

    def answer(self, label: Label, reply: Reply | None = None) -> Answer:
        return Answer(self.seat, self.turn, label, self.news, reply)

    def failed(self, error: object) -> Answer:
        return self.answer(Label(ids=(), error=f"{FAILED}: {error}"))


def _question(seat: Seat, news: Sequence[Message] | None) -> _Asked:
    ledger: Ledger = seat.ledger
    prompt = [] if news is not None else ledger.prompt
    room = None if ledger.limit is None else ledger.limit - len(prompt)
    return _Asked(seat, seat.turn, prompt, news, room)


class TextTeacher:
    """A function from a seat to a text.

    Args:
        act: chooses the action. Whatever it raises loses one label, and is on record.
        renderer: the student's: writes the tokens.
        executor: who is on record as having acted.
        workers: threads that call `act`; 0 calls it at once. On a thread it gets a seat without
            the environment, which has gone on meanwhile, and with its own copy of the messages.
        timeout_s: an answer that a thread does not give in time has failed. The time that a
            question waits for a thread does not count while they begin to answer others.
    """

    def __init__(
        self,
        act: Act,
        *,
        renderer: Renderer,
        executor: Executor = "expert",
        workers: int = 0,
        timeout_s: float = 120.0,
    ) -> None:
        self.act, self.renderer, self.timeout_s = act, renderer, timeout_s
        self.executor: Executor = executor
        self.pause_s = 0.002 if workers else 0.0
        self._threads = ThreadPoolExecutor(workers) if workers else None
        self._asked: list[tuple[_Asked, Future[str]]] = []
        self._moved = 0.0
        """When a thread last began to answer a question."""

    def ask(self, seat: Seat, news: Sequence[Message] | None = None) -> None:
        """Call the function, or have it called."""
        asked = _question(seat, news)
        if self._threads is None:
            future: Future[str] = Future()
            try:
                future.set_result(self.act(seat))
            except Exception as error:  # whatever it is, it costs one label
                future.set_exception(error)
        else:
            blind: Any = None
            copy = replace(seat, messages=list(seat.messages), env=blind)
            future = self._threads.submit(self._begin, asked, copy)
        self._asked.append((asked, future))

    def _begin(self, asked: _Asked, seat: Seat) -> str:
        """On a thread: from here on the answer's time runs."""
        self._moved = asked.begun = monotonic()
        return self.act(seat)

    def poll(self) -> list[Answer]:
        """Return what was answered, in the order in which it was asked."""
        late = monotonic() - self.timeout_s
        ready = [pair for pair in self._asked if pair[1].done() or self._runs_since(pair[0]) < late]
        if ready:
            self._asked = [pair for pair in self._asked if pair not in ready]
        return [self._answer(asked, future) for asked, future in ready]

    def _runs_since(self, asked: _Asked) -> float:
        """When the time of a question began to run: while it waits, with each that is begun."""
        return max(asked.since, self._moved) if asked.begun is None else asked.begun

    def _answer(self, asked: _Asked, future: Future[str]) -> Answer:
        if not future.done():
            future.cancel()
            return asked.failed(f"no answer in {self.timeout_s:g} s")
        if (error := future.exception()) is not None:
            return asked.failed(in_one_line(error))
        text = future.result()
        if not isinstance(text, str):
            return asked.failed(f"an action is a str, got {type(text).__name__}")
        error_code = misspelt(asked.seat, text)
        if asked.news is not None:
            return asked.answer(Label(text, error=error_code), self._say(asked, text))
        ids = tuple(self.renderer.action_ids(text))
        full = asked.room is not None and len(ids) > asked.room
        return asked.answer(Label(text, ids, "full" if full else error_code))

    def _say(self, asked: _Asked, text: str) -> Reply:
        assert asked.news is not None
        if not read(asked.seat, self.renderer, asked.news):
            return Reply("", self.executor, full=True)
        return said(asked.seat, self.renderer, text, self.executor)

    def close(self, seat: Seat) -> None:
        """It does not act there any more."""
        self._asked = [
            (asked, future)
            for asked, future in self._asked
            if asked.seat is not seat or asked.news is None
        ]

    def drop(self) -> None:
        """Forget what was asked."""
        for _, future in self._asked:
            future.cancel()
        self._asked = []


class LLMTeacher:
    """A language model with the student's tokenizer.

    An engine knows one request per session, so what is asked of a seat is answered in order: the
    keys and values of its history are computed once for labels and actions together.

    Args:
        policy: acts on its own engine; give it `executor="teacher"`.
    """

    pause_s = 0.0

    def __init__(self, policy: LLMPolicy) -> None:
        self.policy = policy
        self._busy: dict[str, _Asked] = {}
        self._later: dict[str, deque[_Asked]] = {}
        self._ready: list[Answer] = []
        self._over: set[str] = set()

    def ask(self, seat: Seat, news: Sequence[Message] | None = None) -> None:
        """Queue a request for it."""
        asked = _question(seat, news)
        if seat.key in self._busy:
            self._later.setdefault(seat.key, deque()).append(asked)
        else:
            self._start(asked)

    def _start(self, asked: _Asked) -> None:
        """Hand a question to the engine, unless nothing fits behind its prompt."""
        seat = asked.seat
        self._busy[seat.key] = asked
        if asked.news is not None:
            self.policy.submit(seat, asked.news)
            return
        room = self.policy.engine.max_len - len(asked.prompt)
        room = room if asked.room is None else min(room, asked.room)
        if room < 1 or not asked.prompt:
            self._ready.append(asked.answer(Label(ids=(), error="full")))
            self._next(seat.key)
            return
        # Not the student's own draws: the label must not depend on what the student does here.
        seed = derive(seat.seed, "label", asked.turn)
        request = GenRequest(seat.key, asked.prompt, self.policy.at_most(room), seed)
        self.policy.engine.submit(request)

    def poll(self) -> list[Answer]:
        """Advance the engine by one step.

        Raises:
            EngineError: it is broken, and somebody waits for an action; labels are only lost.
        """
        try:
            outputs = self.policy.engine.poll() if self._busy else []
        except EngineError as error:
            self._lose(error)
            outputs = []
        acting = [output for output in outputs if self._busy[output.session].news is not None]
        for seat, reply in self.policy.take(acting):
            asked = self._busy[seat.key]
            error_code = "" if reply.full else misspelt(seat, reply.text)
            self._ready.append(asked.answer(Label(str(reply.text), error=error_code), reply))
            self._next(seat.key)
        for output in outputs:
            if output not in acting:
                labelled = self._busy[output.session]
                self._ready.append(labelled.answer(self._label(labelled, output)))
                self._next(output.session)
        ready, self._ready = self._ready, []
        return ready

    def _label(self, asked: _Asked, output: GenOutput) -> Label:
        action = self.policy.written(asked.seat, output.token_ids)
        error = CUT if output.finish == "length" else misspelt(asked.seat, action)
        return Label(str(action), output.token_ids, error)

    def _next(self, key: str) -> None:
        del self._busy[key]
        if later := self._later.get(key):
            self._start(later.popleft())
        elif key in self._over:
            self._over.discard(key)
            self.policy.engine.end_session(key)

    def _lose(self, error: EngineError) -> None:
        """Every request in flight is lost: labels have failed, actions fail their episodes."""
        lost, self._busy = list(self._busy.values()), {}
        lost += [asked for later in self._later.values() for asked in later]
        self._later = {}
        self._ready += [asked.failed(in_one_line(error)) for asked in lost if asked.news is None]
        for asked in lost:
            self.policy.engine.end_session(asked.seat.key)
        if any(asked.news is not None for asked in lost):
            raise error

    def close(self, seat: Seat) -> None:
        """It does not act there any more; its cache is freed with the last label."""
        busy = self._busy.get(seat.key)
        if busy is not None and busy.news is not None:
            del self._busy[seat.key]
            self.policy.close(seat)
        elif busy is not None:
            later = self._later.pop(seat.key, deque())
            self._later[seat.key] = deque(asked for asked in later if asked.news is None)
            self._over.add(seat.key)
        else:
            self.policy.close(seat)

    def drop(self) -> None:
        """Forget what was asked."""
        for key in self._busy:
            self.policy.engine.end_session(key)
        self._busy, self._later, self._ready = {}, {}, []
        self._over.clear()
