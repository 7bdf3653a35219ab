"""Servers of the same weights, asked as if they were one.

A session stays with its server, whose prefix cache knows it, until that one dies. A request is a
pure function of its tokens and its seed, so it may be asked twice, and of another server. What a
server answers is checked against what was asked. Coroutines of one event loop, which
`turnwise.agents.engines.vllm` runs in the background.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from turnwise.agents.engines.base import (
    EngineError,
    GenOutput,
    GenRequest,
    ScoreOutput,
    ScoreRequest,
    ServerUnfit,
)
from turnwise.agents.engines.client import (
    ProtocolError,
    Server,
    ServerLate,
    ServerLost,
    ServerRefused,
)
from turnwise.agents.engines.replicas import Replica, Replicas
from turnwise.agents.engines.vllm_score import score
from turnwise.agents.engines.vllm_start import Needs, examine
from turnwise.agents.engines.vllm_wire import PLAIN, Wire, output_of, version_name

T = TypeVar("T")
GONE = (ServerLost, ServerLate)


class Fleet:
    """Asks the servers that live, one at a time for each request.

    Args:
        servers: they hold the same model.
        wire: the route; see `vllm_wire`.
        drawing_s: deadline of requests for tokens; by default that of the server.
        shaping: overrides of `PLAIN`; outputs are then not `exact`.
        strikes, rest_s: when a server is dead, and for how long; see `Replicas`.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        wire: Wire,
        drawing_s: float | None,
        shaping: Mapping[str, Any],
        strikes: int,
        rest_s: float,
    ) -> None:
        self.replicas = Replicas(servers, strikes=strikes, rest_s=rest_s)
        self.wire, self.shaping, self.drawing_s = wire, dict(shaping), drawing_s
        self.exact = all(PLAIN.get(name) == value for name, value in self.shaping.items())
        self.model, self.max_len = "", 0
        self.version = 0
        self.synced = False
        """Whether weights were brought; until then a server holds those of its start."""
        self.asking = 0
        """Requests that a server is working on."""
        self.gate = asyncio.Event()
        """Closed while the servers change their weights or sleep: what is asked waits."""
        self.gate.set()

    async def examine(self, needs: Needs, tolerance: float) -> None:
        """See that each is what it must be, and take the model's name and length from them.

        Raises:
            ServerUnfit: one is not, or they serve different models.
            EngineError: one cannot be reached.
        """
        servers = [replica.server for replica in self.replicas.every]
        every = [await examine(server, needs, self.wire, tolerance) for server in servers]
        if len({model for model, _ in every}) > 1:
            raise ServerUnfit(
                f"the servers serve different models: {sorted({m for m, _ in every})}"
            )
        self.model, self.max_len = every[0][0], min(max_len for _, max_len in every)

    async def draw(self, request: GenRequest) -> GenOutput:
        """Sample what is asked for. Raises EngineError when no server could."""
        return await self._on_one(request.session, lambda replica: self._ask(replica, request))

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreOutput]:
        """Score at T = 1, all at once, spread over the servers. Raises EngineError."""
        named = enumerate(requests)
        return list(await asyncio.gather(*(self._score(f"score {i}", r) for i, r in named)))

    async def _score(self, name: str, request: ScoreRequest) -> ScoreOutput:
        try:
            return await self._on_one(name, lambda r: score(r.server, request, self.model))
        finally:
            self.replicas.forget(name)

    async def _on_one(self, session: str, ask: Callable[[Replica], Awaitable[T]]) -> T:
        """Ask the session's server, and another one when that died or could not answer."""
        refused: list[Replica] = []
        while True:
            await self.gate.wait()
            await self._ask_rested()
            replica = self.replicas.of(session, refused)
            replica.load += 1
            self.asking += 1
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
                self.asking -= 1

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

    async def _ask_rested(self) -> None:
        """See whether a dead server is back, with the weights that it ought to have."""
        for replica in self.replicas.rested():
            replica.resting_until = self.replicas.clock() + self.replicas.rest_s
            try:
                # A change of weights that began meanwhile has left this one out.
                if await self.is_current(replica) and self.gate.is_set():
                    self.replicas.revive(replica)
            except EngineError as error:
                self.replicas.failed(replica, error, at_once=True)

    async def is_current(self, replica: Replica) -> bool:
        """Return whether it says that it holds the weights that it was proved to hold.

        The version is stamped before the probe: by itself it says what was sent, not what is there.
        """
        await replica.server.get("/version", deadline_s=10.0)
        if not self.synced:
            return True
        held = (await replica.server.get("/weight_info", deadline_s=10.0)).get("weight_version")
        return held == version_name(self.version) and replica.proved == self.version

    async def until_quiet(self) -> None:
        """Wait until nothing is asked any more. Raises ServerLate after the longest deadline."""
        limit = max(replica.server.deadline_s for replica in self.replicas.every)
        try:
            async with asyncio.timeout(limit):
                while self.asking:
                    await asyncio.sleep(0.002)
        except TimeoutError:
            raise ServerLate(f"{self.asking} requests are not answered in {limit:g} s") from None
