"""The scheduler: the only place that holds an environment and a policy at once.

Every job becomes exactly one `Episode`. There is no barrier between turns: an episode whose
environment has answered asks for its next action whatever the others are doing. A crashed
environment, a lost sandbox and an overrun deadline become outcomes; they are tried once more in a
fresh environment, then masked.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from turnwise.agents.blobs import blob_digest
from turnwise.agents.engines.base import EngineError
from turnwise.agents.faults import in_one_line, log, malformed, place
from turnwise.agents.jobs import Job, jobs_for
from turnwise.agents.ledger import Ledger
from turnwise.agents.policy import Policy, Reply, Seat
from turnwise.agents.prelude import PreludeDiverged, divergence, prelude_policy
from turnwise.agents.watchdog import NoReply, Wait, Watchdog
from turnwise.envs.base import Env
from turnwise.envs.pool import Answer, EnvPool, StepTimeout
from turnwise.envs.types import Episode, Message, Outcome, Segment, Stop, Turn
from turnwise.sandboxes.base import SandboxError

__all__ = ["Job", "Settings", "jobs_for", "play"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How episodes are played; nothing here changes what a policy would sample."""

    concurrency: int = 64
    """Episodes that are live at once."""
    max_turns: int | None = None
    """A cap below the environment's own limit; a horizon curriculum sets it."""
    max_tokens: int | None = None
    """Longest segment, context and actions together."""
    step_timeout_s: float | None = None
    """Deadline of one threaded environment call; None takes the environment's."""
    reply_timeout_s: float = 900.0
    """Deadline of one request to an engine."""
    episode_timeout_s: float = 3600.0
    retries: int = 1
    """Further attempts, each in a fresh environment, after an error of the machine or the env."""

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {self.concurrency}")
        if self.max_turns is not None and self.max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {self.max_turns}")
        if self.reply_timeout_s <= 0 or self.episode_timeout_s <= 0:
            raise ValueError("reply_timeout_s and episode_timeout_s must be above 0")


def play(
    jobs: Iterable[Job],
    make_env: Callable[[], Env],
    policy: Policy,
    settings: Settings | None = None,
    watchdog: Watchdog | None = None,
) -> Iterator[Episode]:
    """Play every job and yield its episode as soon as it is over.

    With fast environments and the embedded engine, the order and the content of what is yielded
    depend on the jobs alone.

    Raises:
        Whatever the policy raises, except EngineError: that is an outcome of the episodes that
        were in flight. Exceptions of environments are outcomes too.
        RolloutStopped: `watchdog` was told to stop it.
    """
    watchdog = watchdog or Watchdog()
    scheduler = _Scheduler(make_env, policy, settings or Settings(), watchdog)
    try:
        yield from scheduler.run(deque((job, 1) for job in jobs))
    finally:
        scheduler.close()


@dataclass(slots=True, eq=False)
class _Live:
    """One episode in flight."""

    job: Job
    attempt: int
    index: int
    seat: Seat
    started: float
    since: float
    """When what it now waits for was asked for."""
    asked: float = 0.0
    turns: list[Turn] = field(default_factory=list)
    observation: str = ""
    state: str = ""
    kind: str = ""
    picture: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    reply: Reply | None = None
    policy_s: float = 0.0
    nondet: tuple[Any, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)

    def see(self, observation: str, info: Any) -> None:
        """Note what is read, and seen, from now on."""
        self.observation, self.picture = observation, ""
        if picture := info.get("picture"):
            self.picture = blob_digest(picture)
            self.blobs[self.picture] = picture

    @property
    def in_prelude(self) -> bool:
        """The next turn is not yet the agent's."""
        return self.seat.turn < len(self.job.prelude)

    @property
    def thinking(self) -> bool:
        """Its policy has been asked and has not answered."""
        return self.asked > 0 and self.reply is None

    def wait(self, now: float) -> Wait:
        """What it waits for."""
        call = "step" if self.reply is not None else "reset"
        on = "the engine" if self.thinking else f"its environment's {call}"
        return Wait(self.seat.key, self.seat.turn, on, now - self.since)


class _Scheduler:
    def __init__(
        self,
        make_env: Callable[[], Env],
        policy: Policy,
        settings: Settings,
        watchdog: Watchdog,
    ) -> None:
        self.policy, self.settings, self.watchdog = policy, settings, watchdog
        self.prelude = prelude_policy(policy, lambda seat: self.by_key[seat.key].job)
        self.pool = EnvPool(make_env, settings.concurrency, step_timeout_s=settings.step_timeout_s)
        self.free = deque(range(settings.concurrency))
        self.by_index: dict[int, _Live] = {}
        self.by_key: dict[str, _Live] = {}
        self.jobs: deque[tuple[Job, int]] = deque()
        self.finished: list[Episode] = []

    def run(self, jobs: deque[tuple[Job, int]]) -> Iterator[Episode]:
        self.jobs = jobs
        while self.jobs or self.by_index:
            if self.watchdog.beat():
                now = time.monotonic()
                self.watchdog.look([live.wait(now) for live in self.by_index.values()])
            self._admit()
            acted = self._poll_policy()
            thinking = len(self.by_index) > self.pool.in_flight
            for answer in self.pool.recv(0.0 if acted or thinking else 0.05):
                self._answered(answer)
            self._expire()
            yield from self.finished
            self.finished = []

    def close(self) -> None:
        for live in list(self.by_index.values()):
            self._dismiss(live.seat)
        self.pool.close()

    def _admit(self) -> None:
        while self.jobs and self.free:
            job, attempt = self.jobs.popleft()
            index = self.free.popleft()
            ledger = Ledger(limit=self.settings.max_tokens)
            key = job.id if attempt == 1 else f"{job.id}#{attempt}"
            seat = Seat(key, _Nobody, job.policy_seed, ledger)  # type: ignore[arg-type]
            now = time.monotonic()
            live = _Live(job, attempt, index, seat, now, now)
            self.by_index[index] = self.by_key[key] = live
            self.watchdog.entering(key, 0, "its environment's reset")
            self.pool.send(index, "reset", seed=job.env_seed, options={"task": job.task})

    def _poll_policy(self) -> bool:
        self.watchdog.entering("of all", 0, "the engine")
        try:
            replies = [*self.prelude.poll(), *self.policy.poll()]
        except EngineError as error:
            for live in [live for live in self.by_index.values() if live.thinking]:
                if error.sessions is None or live.seat.key in error.sessions:
                    self._fail(live, error)
            return True
        for seat, reply in replies:
            if (asked := self.by_key.get(seat.key)) is not None and asked.seat is seat:
                self._act(asked, reply)
        return bool(replies)

    def _act(self, live: _Live, reply: Reply) -> None:
        live.policy_s = time.perf_counter() - live.asked
        if reply.full:
            self._end(live, Outcome.TRUNCATED, Stop.MAX_TOKENS)
            return
        live.reply, live.since = reply, time.monotonic()
        self.watchdog.entering(live.seat.key, live.seat.turn, "its environment's step")
        self.pool.send(live.index, "step", reply.text)

    def _answered(self, answer: Answer) -> None:
        live = self.by_index.get(answer.index)
        if live is None:
            return
        error = answer.error or malformed(answer.value, opening=live.reply is None)
        if error is not None:
            self._fail(live, error)
        elif live.reply is None:
            self._opened(live, answer)
        else:
            self._stepped(live, answer)

    def _opened(self, live: _Live, answer: Answer) -> None:
        observation, info = answer.value
        live.seat.env = self.pool.env(live.index)
        live.seat.tools = info.get("tools") or ()
        live.nondet = tuple(info.get("nondet") or ())
        news = info.get("messages") or [Message(role="user", content=observation)]
        self._ask(live, observation, news, info)

    def _ask(self, live: _Live, observation: str, news: Sequence[Message], info: Any) -> None:
        live.see(observation, info)
        live.state, live.kind = info.get("state", ""), str(info.get("kind", ""))
        live.reply, live.asked, live.since = None, time.perf_counter(), time.monotonic()
        live.seat.messages += news
        (self.prelude if live.in_prelude else self.policy).submit(live.seat, news)

    def _stepped(self, live: _Live, answer: Answer) -> None:
        observation, reward, terminated, truncated, info = answer.value
        reply = live.reply
        assert reply is not None
        if not math.isfinite(reward):
            why = f"the reward of turn {live.seat.turn} is {reward!r}; rewards must be finite"
            self._end(live, Outcome.JUDGE_ERROR, Stop.ERROR, error=why)
            return
        if live.in_prelude:
            if why := divergence(live.job, live.seat.turn, observation, info.get("state", "")):
                live.metrics["prelude_diverged"] = 1.0
                self._fail(live, PreludeDiverged(why))
                return
            live.metrics["prelude"] = live.seat.turn + 1.0
        live.turns.append(_turn(live, reply, float(reward), info, answer.seconds))
        live.seat.messages.append(Message(role="assistant", content=str(reply.text)))
        live.seat.turn += 1
        if terminated or truncated:
            self._conclude(live, observation, terminated, info)
        elif self._used_up(live):
            live.see(observation, info)
            self._end(live, Outcome.TRUNCATED, Stop.MAX_TURNS)
        else:
            news = info.get("messages") or [Message(role="tool", content=observation)]
            self._ask(live, observation, news, info)

    def _used_up(self, live: _Live) -> bool:
        """Whether a limit of ours is reached; if it is that of the job alone, note it."""
        job, turn = live.job, live.seat.turn
        cut = job.max_turns is not None and turn >= len(job.prelude) + job.max_turns
        spent = self.settings.max_turns is not None and turn >= self.settings.max_turns
        if cut and not spent:
            live.metrics["cut"] = 1.0
        return cut or spent

    def _conclude(self, live: _Live, observation: str, terminated: bool, info: Any) -> None:
        live.see(observation, info)
        named = Outcome.OK if terminated else Outcome.TRUNCATED
        outcome = Outcome(info.get("outcome", named))
        stop = Stop.TERMINATED if terminated else Stop.TRUNCATED
        success = bool(info.get("success", terminated and live.turns[-1].reward > 0))
        self._end(live, outcome, stop, success, info.get("metrics") or {}, info.get("detail", ""))

    def _expire(self) -> None:
        now, settings = time.monotonic(), self.settings
        for live in list(self.by_index.values()):
            if live.started < now - settings.episode_timeout_s:
                over = f"over {settings.episode_timeout_s} s for the episode"
                self._fail(live, StepTimeout(f"{over}; {live.wait(now)}"))
            elif live.thinking and live.since < now - settings.reply_timeout_s:
                over = f"over {settings.reply_timeout_s} s for a reply"
                self._fail(live, NoReply(f"{over}; {live.wait(now)}"))

    def _fail(self, live: _Live, error: BaseException) -> None:
        """Give the episode another try in a fresh environment, or let it end as an error."""
        if not isinstance(error, Exception):
            raise error
        where = live.job.id, live.attempt, live.seat.turn
        log.debug("episode %s failed (attempt %d, turn %d)", *where, exc_info=error)
        self.pool.replace(live.index)
        if live.attempt <= self.settings.retries and getattr(error, "retryable", True):
            self._leave(live)
            self.free.rotate(1)  # its place is taken first, and the pool makes a new one for it
            self.jobs.appendleft((live.job, live.attempt + 1))
            return
        machine = isinstance(error, (SandboxError, StepTimeout, EngineError))
        outcome = Outcome.INFRA_ERROR if machine else Outcome.ENV_ERROR
        stop = Stop.DEADLINE if isinstance(error, StepTimeout | NoReply) else Stop.ERROR
        text = in_one_line(error)
        self._end(live, outcome, stop, error=text if machine else text + place(error))

    def _dismiss(self, seat: Seat) -> None:
        self.prelude.close(seat)
        self.policy.close(seat)

    def _leave(self, live: _Live) -> None:
        self._dismiss(live.seat)
        del self.by_index[live.index], self.by_key[live.seat.key]
        self.free.append(live.index)

    def _end(
        self,
        live: _Live,
        outcome: Outcome,
        stop: Stop,
        success: bool = False,
        metrics: Any = None,
        error: str = "",
    ) -> None:
        self._leave(live)
        job, env = live.job, live.seat.env
        self.finished.append(
            Episode(
                id=job.id,
                env_id=getattr(env, "env_id", ""),
                env_kwargs=dict(getattr(env, "env_kwargs", {})),
                task=job.task,
                group=job.group,
                replica=job.replica,
                env_seed=job.env_seed,
                policy_seed=job.policy_seed,
                nondet=live.nondet,
                segments=_segments(live),
                outcome=outcome,
                stop=stop,
                success=success and outcome is Outcome.OK,
                error=error,
                final_observation=live.observation,
                final_picture=live.picture,
                blobs=live.blobs,
                metrics={
                    **(metrics or {}),
                    "drift": live.seat.ledger.drift["rewrite"],
                    **live.metrics,
                },
                attempts=live.attempt,
                wall_s=time.monotonic() - live.started,
                sandbox=getattr(env, "sandbox", ""),
            )
        )


class _Nobody:
    """Stands in a seat until its environment has been reset."""

    env_id = ""
    env_kwargs: ClassVar[dict[str, Any]] = {}


def _turn(live: _Live, reply: Reply, reward: float, info: Any, env_s: float) -> Turn:
    fields: dict[str, Any] = {
        "observation": live.observation,
        "action": str(reply.text),
        "calls": tuple(info.get("calls") or ()),
        "token_calls": tuple(call.to_json() for call in getattr(reply.text, "calls", ())),
        "reward": reward,
        "rewards": info.get("rewards") or {},
        "executor": reply.executor,
        "state_before": live.state,
        "state_after": info.get("state", ""),
        "kind": live.kind,
        "env_s": env_s,
        "policy_s": live.policy_s,
        "nondet": tuple(info.get("nondet") or ()),
        "picture": live.picture,
    }
    # A policy without tokens writes no ledger, and its turns have no ids.
    return live.seat.ledger.turn(**fields) if live.seat.ledger.ids else Turn(**fields)


def _segments(live: _Live) -> tuple[Any, ...]:
    if live.seat.ledger.ids:
        return live.seat.ledger.segments
    return (Segment(turns=tuple(live.turns)),) if live.turns else ()
