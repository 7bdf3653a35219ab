"""vLLM servers behind the engine protocol: token ids in, token ids out, over HTTP.

Requests run on a background loop, so `submit` and `poll` never wait for a server. Which server is
asked, and again which, is the business of `vllm_fleet`; what it holds is proved after every change
of weights, in `vllm_change`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from queue import Empty, SimpleQueue
from typing import Any

from turnwise.agents.engines.background import Background
from turnwise.agents.engines.base import (
    EngineError,
    GenOutput,
    GenRequest,
    PromptTooLong,
    ScoreOutput,
    ScoreRequest,
)
from turnwise.agents.engines.client import ProtocolError, Server
from turnwise.agents.engines.replicas import Replicas
from turnwise.agents.engines.vllm_change import Held, adopt, bring, lay, leave
from turnwise.agents.engines.vllm_fleet import Fleet
from turnwise.agents.engines.vllm_score import check_scorable
from turnwise.agents.engines.vllm_sleep import started_with
from turnwise.agents.engines.vllm_start import Needs
from turnwise.agents.engines.vllm_weights import TOLERANCE, SavedWeights, Way, reload_folder
from turnwise.agents.engines.vllm_wire import COMPLETIONS, Wire

WAIT_S = 0.005
"""`poll` waits so long for an answer, rather than be asked again at once."""


class EngineBroken(EngineError):
    """The last change of weights failed: nothing sampled since is to be used."""


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
        self.way, self.tolerance, self.broken = way, tolerance, ""
        self.fleet = Fleet(
            made,
            wire=wire,
            drawing_s=drawing_s,
            shaping=shaping or {},
            strikes=strikes,
            rest_s=rest_s,
        )
        self._done: SimpleQueue[tuple[GenRequest, Future[GenOutput]]] = SimpleQueue()
        self._flying: dict[str, tuple[GenRequest, Future[GenOutput]]] = {}
        self._ready: list[GenOutput] = []
        self._scoring: set[Future[list[ScoreOutput]]] = set()
        self._background = Background()
        try:
            self._background.run(self.fleet.examine(needs or Needs(), tolerance))
        except BaseException:
            self.close()
            raise
        self.max_len = self.fleet.max_len

    @property
    def version(self) -> int:
        """Of the weights that the servers hold."""
        return self.fleet.version

    @property
    def model(self) -> str:
        """The name that servers are asked for."""
        return self.fleet.model

    @property
    def started_with(self) -> str:
        """The folder or name of the model that the first server was started with, if it tells."""
        try:
            return self._background.run(started_with(self.fleet.replicas.every[0].server))
        except ProtocolError:
            return ""

    @property
    def shaping(self) -> Mapping[str, Any]:
        """What it samples with otherwise than a trainer assumes; empty where one may learn."""
        return self.fleet.shaping

    @property
    def replicas(self) -> Replicas:
        """The servers, dead ones too."""
        return self.fleet.replicas

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
        future = self._background.start(self.fleet.draw(copied))
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

    def end_session(self, session: str) -> None:
        """Forget where the session was; a request in flight is dropped."""
        flying = self._flying.pop(session, None)
        if flying is not None:
            flying[1].cancel()
        self.replicas.forget(session)

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
        scores = self._background.start(self.fleet.score(requests))
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
            way, most = self.way, self.tolerance
            self._background.run(bring(self.fleet, source, version, way=way, tolerance=most))
        except EngineError as error:
            self._break(f"the change to weights of version {version} failed: {error}")
            raise EngineBroken(self.broken) from error
        self._open()

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
        try:
            self._background.run(adopt(self.fleet, held, version))
        except EngineError as error:
            self._break(f"weights of version {version} were not found: {error}")
            raise EngineBroken(self.broken) from error
        self._open()

    def _open(self) -> None:
        """Let what waits be asked: the servers are known to hold the weights."""
        self.broken = ""
        self._background.loop.call_soon_threadsafe(self.fleet.gate.set)

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
            self._background.run(lay(self.fleet, level))
        except EngineError as error:
            self._break(f"the servers were not put to sleep: {error}")
            raise EngineBroken(self.broken) from error

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
            self._background.run(leave(self.fleet))
            self._background.close()
