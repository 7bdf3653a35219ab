"""The token ledger of one episode: what was read and what was sampled, in order, once.

Append-only. The ids that the engine returned are the ids that are trained on; nothing is ever
tokenized a second time. A history rewrite is a `branch`: it starts another segment, and is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from turnwise.envs.types import Segment, Turn, digest


class LedgerError(RuntimeError):
    """The ledger was written in an impossible order; a bug of the caller."""


class ContextFull(LedgerError):
    """The tokens do not fit under the limit; nothing was written, and the episode is over."""


class Ledger:
    """Tokens of one episode.

    A turn is written as `start` or `context` (what the agent reads), `sampled` (what the engine
    returned), and `turn` once the environment has answered.

    Attributes:
        ids: All tokens of the current segment, not to be changed by the caller. O(1) per token.
        drift: History rewrites by cause.

    Args:
        limit: Most tokens that a segment may hold: the engine's context length.
    """

    def __init__(self, *, limit: int | None = None) -> None:
        self.limit = limit
        self.ids: list[int] = []
        self.drift: Counter[str] = Counter()
        self._closed: list[Segment] = []
        self._open_segment(())

    def _open_segment(self, inherited: Sequence[int]) -> None:
        self._inherited = tuple(inherited)
        self._turns: list[Turn] = []
        self._mask = [0] * len(inherited)
        self._seen = len(inherited)  # tokens that belong to a turn; behind them is its context
        self._sampled: dict[str, Any] | None = None

    @property
    def room(self) -> int | None:
        """Tokens that still fit; None without a limit."""
        return None if self.limit is None else self.limit - len(self.ids)

    @property
    def prompt(self) -> list[int]:
        """What the next action follows; the one that no `turn` took yet is left out."""
        own = 0 if self._sampled is None else len(self._sampled["action_ids"])
        return self.ids[: len(self.ids) - own]

    @property
    def sha(self) -> str:
        """`Segment.sha` of the current segment: ids and loss mask up to the last action."""
        end = self._seen
        return digest([self.ids[:end], self._mask[:end]])

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All segments that hold a turn, the current one last. Call it when the episode ends."""
        current = Segment(turns=tuple(self._turns), inherited_ids=self._inherited, sealed=self.sha)
        return (*self._closed, current) if self._turns else tuple(self._closed)

    def start(self, prompt_ids: Sequence[int]) -> None:
        """Write the rendered opening.

        Raises:
            LedgerError: The ledger has been started, or the prompt is empty.
            ContextFull: The prompt is longer than the limit.
        """
        if self.ids:
            raise LedgerError(f"the ledger has started ({len(self.ids)} tokens): use `context`")
        if not len(prompt_ids):
            raise LedgerError("the prompt is empty: an engine cannot sample after nothing")
        self._append(prompt_ids, 0)

    def context(self, ids: Sequence[int]) -> None:
        """Write what the agent reads next (`Renderer.delta`); never trained on.

        Raises:
            LedgerError: Before `start`, or before `turn` took the last action.
            ContextFull: The ids do not fit.
        """
        self._check_ready()
        self._append(ids, 0)

    def sampled(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float],
        finish: Literal["stop", "length", "abort"],
        version: int,
        *,
        temperature: float = 1.0,
        versions: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        """Write an action exactly as the engine returned it, a sampled stop token included.

        Args:
            version: of the weights that sampled the last token.
            versions: (version, start, end) of the tokens, as `GenOutput.versions`; kept where
                there are several.

        Raises:
            LedgerError: Before `start`, before `turn` took the last action, without a token, or
                with another number of logprobs than ids.
            ContextFull: The ids do not fit.
        """
        self._check_ready()
        if not len(ids) or len(ids) != len(logprobs):
            raise LedgerError(
                "an action needs at least one token and one logprob for each, "
                f"got {len(ids)} ids and {len(logprobs)} logprobs"
            )
        context = tuple(self.ids[self._seen :])
        self._append(ids, 1)
        self._sampled = {
            "context_ids": context,
            "action_ids": tuple(self.ids[len(self.ids) - len(ids) :]),
            "logprobs": tuple(map(float, logprobs)),
            "finish": finish,
            "policy_version": version,
            "versions": tuple(versions) if len(versions) > 1 else (),
            "temperature": temperature,
        }
        self._seen = len(self.ids)

    def turn(self, **fields: Any) -> Turn:
        """Return the last action as a `Turn`, with `fields` (observation, reward, ...) added.

        Raises:
            LedgerError: Nothing was sampled since the last turn.
            ValueError: See `Turn`.
        """
        if self._sampled is None:
            raise LedgerError("nothing was sampled since the last turn")
        turn = Turn(**self._sampled, **fields)
        self._turns.append(turn)
        self._sampled = None
        return turn

    def branch(self, full_ids: Sequence[int], cause: str = "rewrite") -> bool:
        """Go on after a history that was rendered anew (`Renderer.rewrite`).

        Starts another segment that inherits `full_ids`, never trained on, and counts it in
        `drift`. If the rewritten history only extends the present one, it is plain context.

        Returns:
            Whether it was a rewrite.

        Raises:
            LedgerError: Before `start`, or before `turn` took the last action.
            ContextFull: `full_ids` is longer than the limit.
        """
        self._check_ready()
        if list(full_ids[: len(self.ids)]) == self.ids:
            self._append(full_ids[len(self.ids) :], 0)
            return False
        self._check_fits(len(full_ids))
        self._closed = list(self.segments)
        self.ids = [int(i) for i in full_ids]
        self._open_segment(self.ids)
        self.drift[cause] += 1
        return True

    def _append(self, ids: Sequence[int], trained: int) -> None:
        self._check_fits(len(self.ids) + len(ids))
        self.ids += map(int, ids)
        self._mask += [trained] * len(ids)

    def _check_fits(self, length: int) -> None:
        if self.limit is not None and length > self.limit:
            raise ContextFull(
                f"{length} tokens do not fit into {self.limit}: end the episode (max_tokens), "
                "shorten the observations or raise the engine's context length"
            )

    def _check_ready(self) -> None:
        if not self.ids:
            raise LedgerError("the ledger has not started: call `start` with the rendered opening")
        if self._sampled is not None:
            raise LedgerError("the last action is in no turn yet: call `turn` first")
