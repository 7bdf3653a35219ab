"""vLLM servers behind the engine protocol: token ids in, token ids out, over HTTP.

An episode stays on one server, whose prefix cache knows it. Requests run on a background loop, so
`submit` and `poll` never wait for a server. A request is a pure function of its tokens and its
seed, so it may be asked twice, and of another server when its own one died. What a server answers
is checked against what was asked; what it holds is proved after every change of weights.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from turnwise.agents.engines.background import Background
from turnwise.agents.engines.base import (
    EngineError,
    GenOutput,
    GenRequest,
    PromptTooLong,
    ScoreOutput,
    ScoreRequest,
)
from turnwise.agents.engines.client import (
    ProtocolError,
    Server,
    ServerLate,
    ServerLost,
    ServerRefused,
)
from turnwise.agents.engines.replicas import Replica, Replicas
from turnwise.agents.engines.vllm_score import check_scorable, score
from turnwise.agents.engines.vllm_sleep import (
    WAKE_S,
    fall_asleep,
    replace_weights_asleep,
    rouse,
)
from turnwise.agents.engines.vllm_start import Needs, ServerUnfit, examine
from turnwise.agents.engines.vllm_weights import (
    TOLERANCE,
    SavedWeights,
    Way,
    hot_lora,
    prove,
    reload_folder,
    replace_weights,
)
from turnwise.agents.engines.vllm_wire import COMPLETIONS, PLAIN, Wire, output_of, version_name
from turnwise.agents.faults import log

T = TypeVar("T")
GONE = (ServerLost, ServerLate)
WAIT_S = 0.005
"""`poll` waits so long for an answer, rather than be asked again at once."""


class EngineBroken(EngineError):
    """The last change of weights failed: nothing sampled since is to be used."""


@dataclass(frozen=True)
class Held:
    """What servers hold, as one process tells another."""

    model: str
    """The name to ask for."""
    servers: tuple[str, ...]
    """Addresses of those that were proved to hold it."""


class VllmEngine:
    """Samples and scores on vLLM servers; see `turnwise.agents.engines.base.Engine`.

    Args:
        servers: addresses, or `Server`s; several hold the same model.
        needs: what they must be; they are examined here.
        api_key: for addresses.
        deadline_s: of one answer. A server that misses it is dead.
        drawing_s: the same for requests for tokens; by default `deadline_s`.
        wire: the route; see `vllm_wire`.
        way: how weights travel; see `vllm_weights`.
        tolerance: of the look at the start and of the probe after each change of weights, mean
            nats; see `prove`.
        strikes, rest_s: when a server is dead, and for how long; see `Replicas`.
        shaping: overrides of `PLAIN`, as `{"top_p": 0.9}` to evaluate with; outputs are then not
            `exact`.

    Raises:
        ServerUnfit: a server is not what it must be.
        EngineError: a server cannot be reached.
    """

    capabilities = frozenset({"kv_sessions", "score_topk"})

    def __init__(
        self,
        servers: Sequence[str | Server],
        *,
        needs: Needs | None = None,
        api_key: str = "",
        deadline_s: float = 600.0,
        drawing_s: float | None = None,
        wire: Wire = COMPLETIONS,
        way: Way = reload_folder,
        tolerance: float = TOLERANCE,
        strikes: int = 3,
        rest_s: float = 30.0,
        shaping: Mapping[str, Any] | None = None,
    ) -> None:
        made = [
            s if isinstance(s, Server) else Server(s, api_key=api_key, deadline_s=deadline_s)
            for s in servers
        ]
        self.replicas = Replicas(made, strikes=strikes, rest_s=rest_s)
        self.wire, self.way, self.tolerance = wire, way, tolerance
        self.shaping, self.drawing_s = dict(shaping or {}), drawing_s
        self.exact = all(PLAIN.get(name) == value for name, value in self.shaping.items())
        self.version, self.broken = 0, ""
        self._synced = False
        self._done: SimpleQueue[tuple[GenRequest, Future[GenOutput]]] = SimpleQueue()
        self._flying: dict[str, tuple[GenRequest, Future[GenOutput]]] = {}
        self._ready: list[GenOutput] = []
        self._scoring: set[Future[list[ScoreOutput]]] = set()
        self._asking = 0
        self._background = Background()
        self._gate = asyncio.Event()
        self._gate.set()
        try:
            self.model, self.max_len = self._background.run(self._examine(needs or Needs()))
        except BaseException:
            self.close()
            raise

    async def _examine(self, needs: Needs) -> tuple[str, int]:
        servers = [replica.server for replica in self.replicas.every]
        every = [await examine(s, needs, self.wire, self.tolerance) for s in servers]
        if len({model for model, _ in every}) > 1:
            raise ServerUnfit(
                f"the servers serve different models: {sorted({m for m, _ in every})}"
            )
        return every[0][0], min(max_len for _, max_len in every)

    # -- sampling ------------------------------------------------------------------------------

    def submit(self, request: GenRequest) -> None:
        """Queue a request. Raises PromptTooLong when nothing could be sampled after the prompt."""
        length = len(request.token_ids)
        if not 0 < length < self.max_len:
            raise PromptTooLong(
                f"a prompt of {length} tokens does not fit: 1 to {self.max_len - 1} tokens are "
                "possible; start the server with a larger --max-model-len or shorten the history"
            )
        if request.session in self._flying:
            raise ValueError(f"session {request.session!r} has a request in flight already")
        copied = GenRequest(
            request.session, tuple(request.token_ids), request.sampling, request.seed
        )
        future = self._background.start(self._serve(copied))
        self._flying[request.session] = copied, future
        future.add_done_callback(lambda done: self._done.put((copied, done)))

    def poll(self) -> list[GenOutput]:
        """Return what was answered since the last call; waits a few milliseconds for it at most.

        Raises:
            EngineBroken: a change of weights failed; everything in flight is lost.
            EngineError: the requests of its `sessions` are lost.
        """
        if self.broken:
            raise EngineBroken(self.broken)
        error: EngineError | None = None
        lost: set[str] = set()
        for request, future in self._answered():
            if self._flying.get(request.session, (None,))[0] is not request:
                continue  # its session is over
            del self._flying[request.session]
            failure = future.exception()
            if failure is None:
                self._ready.append(future.result())
            elif isinstance(failure, EngineError):
                error, lost = failure, lost | {request.session}
            else:
                raise failure
        if error is not None:
            error.sessions = frozenset(lost)
            raise error
        ready, self._ready = self._ready, []
        return ready

    def _answered(self) -> list[tuple[GenRequest, Future[GenOutput]]]:
        found = []
        wait = bool(self._flying) and not self._ready
        try:
            found.append(self._done.get(block=wait, timeout=WAIT_S))
            while True:
                found.append(self._done.get_nowait())
        except Empty:
            return found

    async def _serve(self, request: GenRequest) -> GenOutput:
        return await self._on_one(request.session, lambda replica: self._ask(replica, request))

    async def _on_one(self, session: str, ask: Callable[[Replica], Awaitable[T]]) -> T:
        """Ask the session's server, and another one when that died or could not answer."""
        refused: list[Replica] = []
        while True:
            await self._gate.wait()
            await self._ask_rested()
            replica = self.replicas.of(session, refused)
            replica.load += 1
            self._asking += 1
            begun = self.replicas.clock()
            try:
                answer = await ask(replica)
            except GONE as error:
                self.replicas.failed(replica, error, at_once=isinstance(error, ServerLate))
            except (ServerRefused, ProtocolError) as error:
                refused.append(replica)
                if not self._others_may(refused, error):
                    raise
            else:
                self.replicas.worked(replica, self.replicas.clock() - begun)
                return answer
            finally:
                replica.load -= 1
                self._asking -= 1

    def _others_may(self, refused: Sequence[Replica], error: ServerRefused | ProtocolError) -> bool:
        """Count a bad answer of the last of these; return whether to ask a server not among them.

        The last server that lives is kept: with it dead there would be no answers at all.
        """
        if isinstance(error, ServerRefused) and error.status < 500:
            return False  # the request is what is wrong
        if self.replicas.others(refused[-1:]):
            self.replicas.failed(refused[-1], error)
        return isinstance(error, ServerRefused) and bool(self.replicas.others(refused))

    async def _ask(self, replica: Replica, request: GenRequest) -> GenOutput:
        # Clipped here: the server would clip without a word.
        room = self.max_len - len(request.token_ids)
        most, version = min(request.sampling.max_tokens, room), self.version
        body = self.wire.body(request, self.model, most, version_name(version), self.shaping)
        answer = await replica.server.post(self.wire.path, body, deadline_s=self.drawing_s)
        return output_of(self.wire, answer, request, most, version, exact=self.exact)

    def end_session(self, session: str) -> None:
        """Forget where the session was; a request in flight is dropped."""
        flying = self._flying.pop(session, None)
        if flying is not None:
            flying[1].cancel()
        self.replicas.forget(session)

    # -- dead servers --------------------------------------------------------------------------

    async def _ask_rested(self) -> None:
        """See whether a dead server is back, with the weights that it ought to have."""
        for replica in self.replicas.rested():
            replica.resting_until = self.replicas.clock() + self.replicas.rest_s
            try:
                # A change of weights that began meanwhile has left this one out.
                if await self._is_current(replica) and self._gate.is_set():
                    self.replicas.revive(replica)
            except EngineError as error:
                self.replicas.failed(replica, error, at_once=True)

    async def _is_current(self, replica: Replica) -> bool:
        """Return whether it says that it holds the weights that it was proved to hold.

        The version is stamped before the probe: by itself it says what was sent, not what is there.
        """
        await replica.server.get("/version", deadline_s=10.0)
        if not self._synced:
            return True
        held = (await replica.server.get("/weight_info", deadline_s=10.0)).get("weight_version")
        return held == version_name(self.version) and replica.proved == self.version

    # -- scoring -------------------------------------------------------------------------------

    def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreOutput]:
        """Score at T = 1, all at once, spread over the servers.

        Raises:
            CannotScore: another temperature, or more candidates than the server gives.
            PromptTooLong: a request does not fit.
            EngineBroken: a change of weights failed, before or meanwhile.
            EngineError: no server answered, or they sleep: who waits here could not wake them.
        """
        for request in requests:
            check_scorable(request, self.max_len)
        if self.asleep and not self.broken:
            raise EngineError("the servers sleep until the next change of weights: score before")
        scores = self._background.start(self._score_all(requests))
        self._scoring.add(scores)
        if self.broken:  # nobody would open the gate; `_break` takes what is there before it
            scores.cancel()
        try:
            return scores.result()
        except CancelledError:
            if not self.broken:
                raise
            raise EngineBroken(self.broken) from None
        finally:
            self._scoring.discard(scores)

    async def _score_all(self, requests: Sequence[ScoreRequest]) -> list[ScoreOutput]:
        named = enumerate(requests)
        return list(await asyncio.gather(*(self._score(f"score {i}", r) for i, r in named)))

    async def _score(self, name: str, request: ScoreRequest) -> ScoreOutput:
        try:
            return await self._on_one(name, lambda r: score(r.server, request, self.model))
        finally:
            self.replicas.forget(name)

    # -- weights -------------------------------------------------------------------------------

    def update_weights(self, source: SavedWeights, version: int) -> None:
        """Bring saved weights to every server that lives, prove that they are there, stamp them.

        Over a route that does not tell versions by the token, requests in flight are waited for;
        over `GENERATE` they are paused and go on under the new weights. A new adapter is always
        waited with: what is in flight would end by the old one, and be said to be by the new.

        Raises:
            EngineBroken: a server holds what it should not, or none is left. The engine raises
                this from every `poll` until another change of weights succeeds.
        """
        try:
            self._background.run(self._update(source, version))
        except EngineError as error:
            self._break(f"the change to weights of version {version} failed: {error}")
            raise EngineBroken(self.broken) from error
        self.version, self.broken, self._synced = version, "", True
        self._background.loop.call_soon_threadsafe(self._gate.set)

    async def _update(self, source: SavedWeights, version: int) -> None:
        self._gate.clear()
        if not self.wire.spans or self.way is hot_lora:
            await self._until_quiet()
        for replica in self.replicas.every:
            replica.proved = None
        replicas = [*self.replicas.living, *self.replicas.rested()]
        renewing = (self._renew(r, source, version) for r in replicas)
        names = await asyncio.gather(*renewing, return_exceptions=True)
        for failure in names:
            if isinstance(failure, BaseException):
                raise failure
        self.replicas.require_one()
        self.model = next(str(name) for name in names if name)

    def held(self) -> Held:
        """Return what the servers hold since the last change of weights, for `adopt`."""
        return Held(self.model, tuple(replica.server.url for replica in self.replicas.living))

    def adopt(self, held: Held, version: int) -> None:
        """Play from now on with weights that another process has brought to the servers.

        Args:
            held: as that process says: the name to ask for, and the servers that were proved. One
                of these that does not say that it holds the weights is dead, as are all others.
            version: of the weights.

        Raises:
            EngineBroken: no server holds them.
        """
        self.model, self.version, self.broken, self._synced = held.model, version, "", True
        try:
            self._background.run(self._look_for_weights(held.servers))
        except EngineError as error:
            self._break(f"weights of version {version} were not found: {error}")
            raise EngineBroken(self.broken) from error
        self._background.loop.call_soon_threadsafe(self._gate.set)

    async def _look_for_weights(self, proved: Sequence[str]) -> None:
        await asyncio.gather(*(self._look_at(r, proved) for r in self.replicas.every))
        self.replicas.require_one()

    async def _look_at(self, replica: Replica, proved: Sequence[str]) -> None:
        error: EngineError = ServerLost(f"{replica.server.url} was not given these weights")
        replica.proved = self.version if replica.server.url in proved else None
        try:
            if replica.proved is not None and await self._is_current(replica):
                return self.replicas.revive(replica)
        except EngineError as raised:
            error = raised
        self.replicas.failed(replica, error, at_once=True)

    async def _renew(self, replica: Replica, source: SavedWeights, version: int) -> str:
        """Return the model's name on a server that is right now; empty if it is dead."""
        server, salt = replica.server, version_name(version)
        try:
            change = replace_weights_asleep if replica.asleep else replace_weights
            name = await change(server, self.way, source, version, self.model)
            room, most = self.max_len, self.tolerance
            await prove(server, self.wire, source, name, salt, max_len=room, tolerance=most)
        except GONE as error:
            self.replicas.failed(replica, error, at_once=True)
            return ""
        replica.proved, replica.asleep = version, 0
        self.replicas.revive(replica)
        return name

    async def _until_quiet(self) -> None:
        limit = max(replica.server.deadline_s for replica in self.replicas.every)
        try:
            async with asyncio.timeout(limit):
                while self._asking:
                    await asyncio.sleep(0.002)
        except TimeoutError:
            raise ServerLate(f"{self._asking} requests are not answered in {limit:g} s") from None

    # -- sleep ---------------------------------------------------------------------------------

    @property
    def asleep(self) -> bool:
        """Whether a server that lives was told to sleep and has not been woken since."""
        return any(replica.asleep for replica in self.replicas.living)

    def sleep(self, level: int) -> None:
        """Have the servers give their memory back until the next change of weights wakes them.

        What is in flight is waited for, and what is submitted meanwhile waits. `close` wakes them,
        too. A server that dies of it is dead as any other.

        Args:
            level: 1 keeps their weights in main memory, 2 forgets them.

        Raises:
            EngineBroken: a server is not asleep, or what is in flight does not end.
        """
        try:
            self._background.run(self._sleep(level))
        except EngineError as error:
            self._break(f"the servers were not put to sleep: {error}")
            raise EngineBroken(self.broken) from error

    async def _sleep(self, level: int) -> None:
        self._gate.clear()
        await self._until_quiet()
        laid = (self._lay(replica, level) for replica in self.replicas.living)
        for failure in await asyncio.gather(*laid, return_exceptions=True):
            if isinstance(failure, BaseException):
                raise failure

    async def _lay(self, replica: Replica, level: int) -> None:
        replica.asleep = level  # also if its answer is lost
        try:
            await fall_asleep(replica.server, level)
        except GONE as error:
            self.replicas.failed(replica, error, at_once=True)

    async def _rouse(self, replica: Replica) -> None:
        """Wake a server that gets no new weights, or say that it sleeps on."""
        if not replica.asleep:
            return
        why: object = "nothing was heard of it"
        try:
            await rouse(replica.server, forgotten=replica.asleep > 1, deadline_s=WAKE_S)
            replica.asleep = 0
        except EngineError as error:
            why = error
        finally:
            if replica.asleep:
                text = "%s may be asleep: POST /wake_up there, or restart it (%s)"
                log.warning(text, replica.server.url, why)

    async def _leave(self) -> None:
        every = self.replicas.every
        await asyncio.gather(*map(self._rouse, every), return_exceptions=True)
        for replica in every:
            await replica.server.close()

    def _break(self, why: str) -> None:
        self.broken = why
        for scores in list(self._scoring):
            scores.cancel()
        for session in list(self._flying):
            self.end_session(session)
        self._ready = []

    def close(self) -> None:
        """Drop what is in flight, wake who sleeps and close every connection."""
        if self._background.loop.is_running():
            for session in list(self._flying):
                self.end_session(session)
            self._background.run(self._leave())
            self._background.close()
