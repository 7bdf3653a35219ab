"""A teacher behind an engine, here or on a server: it scores tokens, and its likeliest k.

Engines return the log-probability of what was sampled and of the k likeliest tokens, never of a
whole vocabulary. That serves every sampled signal, the losses k2 and rho_k3, and `top_k` on the
teacher's support; what would read more is refused by its name.

Shape suffixes: M trained tokens, m some of them, K their likeliest, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from turnwise.agents.engines.base import Engine, ScoreOutput, ScoreRequest
from turnwise.trainers.batch import Packed, Row
from turnwise.trainers.distillation import Column, Distillation
from turnwise.trainers.divergences import entries_read
from turnwise.trainers.teachers import Scored, TeacherMismatch, without
from turnwise.trainers.teaching import TOP

ENTRIES: dict[Column, float] = {"top": 1, "overlap": TOP, "reverse_kl": math.inf}
"""Of the teacher's likeliest tokens, how many a column reads."""


class EngineTeacher:
    """Scores rows by `Engine.score`, one request for all turns of an episode.

    A row that does not fit the engine has no score, nor has one of which it says more or less than
    it was asked: whose scores those are is not known. An `EngineError` is not caught: a teacher
    that is gone ends the run, which goes on from its checkpoint.

    Args:
        engine: of a model with the student's tokenizer.
        vocabulary: how many ids the student has.
        topk: how many of the likeliest tokens to ask for.
        unscored: ids that mean something else to it, see `turnwise.trainers.ends`.

    Raises:
        ValueError: `topk` is negative, or the engine gives no likeliest tokens.
    """

    def __init__(
        self,
        engine: Engine,
        vocabulary: int,
        topk: int = 0,
        unscored: frozenset[int] = frozenset(),
    ) -> None:
        if topk < 0:
            raise ValueError(f"topk must be 0 or more, got {topk}")
        if topk and "score_topk" not in engine.capabilities:
            raise ValueError(f"topk is {topk}, and the engine scores given tokens alone: take 0")
        self.engine, self.vocabulary, self.topk = engine, vocabulary, min(topk, vocabulary)
        self.unscored = unscored

    def require(self, how: Distillation) -> None:
        """Refuse what reads more than the engine gives.

        Raises:
            TeacherMismatch: the message names each piece and how much it reads.
        """
        if more := {name: n for name, n in _reads(how).items() if n > self.topk}:
            said = "; ".join(f"{name} reads {_many(n)}" for name, n in more.items())
            raise TeacherMismatch(
                f"the teacher's engine gives {self.topk} of its likeliest tokens, and {said}: "
                "raise topk as far as that goes, or name a teacher that runs in this process"
            )

    def chosen(self, packed: Packed) -> Tensor:
        """Return log T of each trained token, nats, float32; NaN where there is no score. [M]"""
        found_M = packed.temperature_M.new_full((len(packed.target_M),), torch.nan)
        for places, output, offsets in self._outputs(packed, topk=0):
            values = [output.logprobs[offset] for offset in offsets]
            found_M[places] = torch.tensor(values, dtype=found_M.dtype, device=found_M.device)
        return without(found_M, packed.target_M, self.unscored)

    def logprobs(self, packed: Packed) -> Tensor:
        """Return log T of each trained token and of the likeliest `topk`; -inf for others. [M, V]

        A row of NaN where there is no score.
        """
        return self.by_parts(packed)(slice(None))

    def by_parts(self, packed: Packed) -> Scored:
        """Return what gives `logprobs` of some of the trained tokens, [m, V], when it is called.

        The engine is asked at once; what it said is held, not a column for every word.
        """
        of_M = packed.temperature_M
        chosen_M = of_M.new_full((len(of_M),), torch.nan)
        ids_MK = packed.target_M[:, None].repeat(1, self.topk)
        likeliest_MK = of_M.new_full((len(of_M), self.topk), torch.nan)
        for places, output, offsets in self._outputs(packed, self.topk):
            for m, offset in zip(places, offsets, strict=True):
                chosen_M[m] = output.logprobs[offset]
                if self.topk:
                    said = len(output.topk_ids[offset])
                    ids_MK[m, :said] = ids_MK.new_tensor(output.topk_ids[offset])
                    likeliest_MK[m, :said] = of_M.new_tensor(output.topk_logprobs[offset])
        chosen_M = without(chosen_M, packed.target_M, self.unscored)

        def of(part: slice) -> Tensor:
            found_mV = of_M.new_full((len(of_M[part]), self.vocabulary), -torch.inf)
            found_mV.scatter_(-1, ids_MK[part], likeliest_MK[part])
            # Also where the engine named fewer tokens than it was asked for.
            found_mV.scatter_(-1, packed.target_M[part, None], chosen_M[part, None])
            return found_mV.masked_fill_(chosen_M[part, None].isnan(), torch.nan)

        return of

    def _outputs(
        self, packed: Packed, topk: int
    ) -> Iterator[tuple[list[int], ScoreOutput, list[int]]]:
        """Yield (indices of M, what the engine says, their rows in it) for what fits."""
        places, requests, offsets = [], [], []
        for mine, request, inside in _requests(packed.rows, topk):
            if len(request.token_ids) < self.engine.max_len:  # a server samples one behind them
                self._require_temperature(request)
                places.append(mine)
                requests.append(request)
                offsets.append(inside)
        outputs = self.engine.score(requests)
        if len(outputs) != len(requests):
            raise TeacherMismatch(
                f"the teacher's engine was asked to score {len(requests)} sequences and answered "
                f"{len(outputs)}: it must give one output for each, in their order"
            )
        for asked, mine, output, inside in zip(requests, places, outputs, offsets, strict=True):
            if _is_whole(asked, output):
                yield mine, output, inside

    def _require_temperature(self, request: ScoreRequest) -> None:
        if request.temperature != 1.0 and "score_temperature" not in self.engine.capabilities:
            raise TeacherMismatch(
                f"tokens were sampled at temperature {request.temperature}, and the teacher's "
                "engine scores at 1: sample at 1"
            )

    def after_update(self, model: nn.Module, updates: int) -> None:
        """Stay as it is."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the engine keeps its weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take."""

    def close(self) -> None:
        """Close the connections of an engine that has any."""
        getattr(self.engine, "close", lambda: None)()


def likeliest(how: Distillation) -> int:
    """Return how many of the teacher's likeliest tokens are read, whole vocabularies aside."""
    return int(max((n for n in _reads(how).values() if not math.isinf(n)), default=0))


def _reads(how: Distillation) -> dict[str, float]:
    """Return how many of the teacher's likeliest tokens each piece reads."""
    reads: dict[str, float] = {f"column {name}": ENTRIES.get(name, 0) for name in how.needs}
    if how.direct is not None:
        reads["its direct loss"] = entries_read(how.direct)
    return reads


def _requests(
    rows: Sequence[Row], topk: int
) -> Iterator[tuple[list[int], ScoreRequest, list[int]]]:
    """Yield, by row and temperature, (indices of M, the request, rows of its output)."""
    first = 0
    for row in rows:
        seen = row.hinted()
        for temperature in sorted(set(row.temperature)):
            mine = [i for i, t in enumerate(row.temperature) if t == temperature]
            at = [seen.start + row.trained[i] for i in mine]
            ids = seen.ids[: at[-1] + 1]
            # At T = 0 the convention of engines is T = 1.
            request = ScoreRequest(ids, start=at[0], topk=topk, temperature=temperature or 1.0)
            yield [first + i for i in mine], request, [place - at[0] for place in at]
        first += len(row.trained)


def _is_whole(request: ScoreRequest, output: ScoreOutput) -> bool:
    """Whether an output has a row for each token that was to be scored."""
    asked = len(request.token_ids) - request.start
    likeliest = (output.topk_ids, output.topk_logprobs) if request.topk else ()
    return all(len(column) == asked for column in (output.logprobs, *likeliest))


def _many(entries: float) -> str:
    return "the whole vocabulary" if math.isinf(entries) else f"{entries:g}"
