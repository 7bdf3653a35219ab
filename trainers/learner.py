"""Rows in, one optimizer step out: the only place that holds a gradient.

Accelerate places the model, runs the backward pass and writes checkpoints. Denominators are those
of the whole batch, so micro-batches add up exactly, and so do the shares of several processes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from turnwise.agents.engines.functional import base_model
from turnwise.trainers import ranks
from turnwise.trainers.batch import Packed, Row, pack, totals_of
from turnwise.trainers.divergences import Direct, Scores
from turnwise.trainers.objective import Metrics, cross_entropy, merge, objective
from turnwise.trainers.precision import Precision, fp32
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.replicated import Replicated
from turnwise.trainers.scorer import Scorer
from turnwise.trainers.sharded import Sharded
from turnwise.trainers.shares import found_by_all, my_batches
from turnwise.trainers.surrogates import Aggregate, Totals, token_mean
from turnwise.trainers.teachers import Teacher, scores_by_parts

MAX_SKIPPED = 3
LossOf = Callable[[Packed], tuple[Tensor, Metrics]]
"""A micro-batch to its share of the loss, and its metrics."""


class TrainingDiverged(RuntimeError):
    """Losses or gradients were not finite several times in a row; the weights are the last good."""


class Learner:
    """A model, its optimizer and how to step it.

    Args:
        model: a Hugging Face causal model; moved to Accelerate's device.
        learning_rate: of AdamW; `schedule` multiplies it.
        schedule: step -> factor.
        micro_tokens: about so many tokens per forward pass.
        max_len: longest sequence in tokens.
        precision: of the matrix products; see `turnwise.trainers.precision`.
        recompute: keep no activations inside the layers.
        flex: see `Scorer`.
        shard: split weights, gradients and optimizer over the processes.

    Attributes:
        model: the trained weights as a plain model, on every process.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        schedule: Callable[[int], float] = lambda step: 1.0,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.99),
        max_grad_norm: float = 1.0,
        micro_tokens: int = 8192,
        max_len: int = 1024,
        precision: Precision = fp32,
        recompute: bool = False,
        flex: bool = False,
        shard: bool = False,
    ) -> None:
        self.accelerator = ranks.accelerator()
        # Not train(): dropout would make the log-probabilities differ from those of the engine.
        self.weights = (Sharded if shard else Replicated)(
            self.accelerator,
            model.eval(),
            partial(Scorer, max_len=max_len, precision=precision, recompute=recompute, flex=flex),
            partial(torch.optim.AdamW, lr=learning_rate, betas=betas, weight_decay=weight_decay),
        )
        self.model, self.scorer = self.weights.model, self.weights.scorer
        self.optimizer = self.weights.optimizer
        self.learning_rate, self.schedule = learning_rate, schedule
        self.max_grad_norm, self.micro_tokens, self.max_len = max_grad_norm, micro_tokens, max_len
        self.updates, self.skipped = 0, 0
        self._reference: Scorer | None = None

    @property
    def vocabulary(self) -> int:
        """How many ids the model gives a probability."""
        config: Any = base_model(self.model).config
        return int(config.vocab_size)

    def keep_reference(self) -> None:
        """Freeze a copy of the present weights for a KL term."""
        frozen = copy.deepcopy(base_model(self.model)).requires_grad_(False)
        self._reference = Scorer(frozen, self.max_len)

    @torch.no_grad()
    def with_proximal(self, rows: Sequence[Row]) -> list[Row]:
        """Return `rows` with the log-probabilities that the present weights give their tokens."""
        totals, device = totals_of(rows), self.accelerator.device

        def find(some: Sequence[Row]) -> dict[str, Tensor]:
            packed = pack(some, aggregate=token_mean, totals=totals, device=device)
            return {"prox": self.scorer.logprobs(packed)}

        found = self.found_by_all(rows, find).get("prox", torch.empty(0)).tolist()
        ends = np.cumsum([len(row.trained) for row in rows])
        return [
            replace(row, prox=found[end - len(row.trained) : end])
            for row, end in zip(rows, ends.tolist(), strict=True)
        ]

    def found_by_all(
        self, rows: Sequence[Row], find: Callable[[list[Row]], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the columns that `find` gives of the trained tokens of `rows`, on every process.

        Each runs it on its share of the micro-batches.
        """
        return found_by_all(rows, self.micro_tokens, find, level=self.weights.level)

    def improve(
        self,
        rows: Sequence[Row],
        advantages: np.ndarray,
        recipe: Recipe,
        teacher: Teacher | None = None,
        shown: Sequence[Row] = (),
    ) -> dict[str, float]:
        """Take one policy-gradient step on `rows`.

        Args:
            advantages: float64, indexed by `Row.turn`; rows with an `advantage` have their own.
            teacher: needed for a direct loss.
            shown: rows to imitate in the same step; both count in the same denominators.

        Returns:
            Metrics of the objective, `grad_norm` and `engine_gap`: the largest difference in nats
            between what the engine said and what the trainer computes before its first step.
        """

        def loss_of(packed: Packed) -> tuple[Tensor, Metrics]:
            logprobs_M, entropy_M, divergence_M = self._forward(packed, recipe, teacher)
            tokens = packed.tokens
            if recipe.kl_coefficient:
                tokens = replace(tokens, ref_M=self.reference_logprobs(packed))
            loss, metrics = objective(logprobs_M, tokens, recipe, entropy_M, divergence_M)
            gap = (logprobs_M.detach() - tokens.old_M).abs().max().item()
            return loss, {**metrics, "max_gap": (gap, 1)}

        imitated = (shown, partial(self._imitated, direct=None, teacher=None))
        return self._step([(rows, loss_of), imitated], advantages, recipe.aggregate)

    def _forward(
        self, packed: Packed, recipe: Recipe, teacher: Teacher | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return (log pi, entropy, direct loss) of each trained token. [M] each"""
        how = recipe.distillation
        if how is None or how.direct is None:
            return *self.scorer.logprobs_and_entropy(packed), None
        if teacher is None:
            raise ValueError(f"recipe {recipe.name!r} has a direct loss and needs a teacher")
        return self._compared(packed, how.direct, teacher)

    def _compared(
        self, packed: Packed, direct: Direct, teacher: Teacher
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (log pi, entropy, direct loss) of each trained token. [M] each"""
        taught = scores_by_parts(teacher, packed, self.vocabulary)

        def find(logits: Tensor, part: slice) -> tuple[Tensor, ...]:
            student = (logits / packed.temperature_M[part, None]).log_softmax(-1)
            with torch.no_grad():
                theirs = taught(part)
                entropy = -(student.exp() * student).sum(-1)
            old = packed.tokens.old_M[part]
            scores = Scores(student, theirs, packed.target_M[part], old)
            return scores.chosen_M, entropy, direct(scores)

        logprobs_M, entropy_M, divergence_M = self.scorer.each(packed, find)
        return logprobs_M, entropy_M, divergence_M

    def imitate(
        self,
        rows: Sequence[Row],
        *,
        aggregate: Aggregate = token_mean,
        direct: Direct | None = None,
        teacher: Teacher | None = None,
        totals: Totals | None = None,
    ) -> dict[str, float]:
        """Take one step of imitation on the trained tokens of `rows`.

        Args:
            aggregate: weight of a token in the mean; `Row.direct`, where it is given, multiplies.
            direct: of the tokens' distributions, in place of the cross-entropy of what was shown.
            teacher: needed for it.
            totals: denominators, where `rows` are a sample that stands for more.
        """
        loss_of = partial(self._imitated, direct=direct, teacher=teacher)
        return self._step([(rows, loss_of)], None, aggregate, totals)

    def _imitated(
        self, packed: Packed, direct: Direct | None, teacher: Teacher | None
    ) -> tuple[Tensor, Metrics]:
        """Return the loss of imitation of a micro-batch, and its metrics."""
        weight_M = packed.tokens.weight_M
        if packed.tokens.direct_M is not None:
            weight_M = weight_M * packed.tokens.direct_M
        if direct is None:
            return cross_entropy(self.scorer.logprobs(packed), weight_M)
        if teacher is None:
            raise ValueError("imitation by a direct loss needs a teacher that scores tokens")
        logprobs_M, _, divergence_M = self._compared(packed, direct, teacher)
        _, metrics = cross_entropy(logprobs_M.detach(), weight_M)
        watched = {"direct_loss": (float(divergence_M.detach().sum()), len(divergence_M))}
        return (weight_M * divergence_M).sum(), {**metrics, **watched}

    def _step(
        self,
        parts: Sequence[tuple[Sequence[Row], LossOf]],
        advantages: np.ndarray | None,
        aggregate: Aggregate,
        totals: Totals | None = None,
    ) -> dict[str, float]:
        # A segment may hold others' turns alone.
        parts = [([row for row in rows if row.trained], loss_of) for rows, loss_of in parts]
        totals = totals or totals_of([row for rows, _ in parts for row in rows])
        if not any(rows for rows, _ in parts):
            return {"trained_tokens": 0.0}
        losses, seen = [], []
        for rows, loss_of in parts:
            for some, counts in my_batches(rows, self.micro_tokens, level=self.weights.level):
                packed = pack(
                    some,
                    advantages=advantages,
                    aggregate=aggregate,
                    totals=totals,
                    device=self.accelerator.device,
                )
                loss, part = loss_of(packed)
                self.accelerator.backward(loss if counts else 0.0 * loss)
                if counts:
                    losses.append(loss.item())
                    seen.append(part)
        self.weights.sum_gradients()
        shares = ranks.gather((losses, seen))
        metrics = merge([part for _, theirs in shares for part in theirs])
        metrics["loss"] = math.fsum([loss for theirs, _ in shares for loss in theirs])
        metrics["trained_tokens"] = float(totals.tokens)
        return metrics | self._apply(metrics["loss"])

    def _apply(self, loss: float) -> dict[str, float]:
        """Clip and step, unless something is not finite: then forget the gradient."""
        norm = self.weights.clip(self.max_grad_norm)
        if math.isfinite(loss) and math.isfinite(norm):
            rate = self.learning_rate * self.schedule(self.updates)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.weights.publish()
            self.updates, self.skipped = self.updates + 1, 0
        else:
            self.skipped += 1
            rate = 0.0
        self.optimizer.zero_grad()
        if self.skipped >= MAX_SKIPPED:
            raise TrainingDiverged(
                f"loss {loss} and gradient norm {norm} after {self.updates} updates, "
                f"{MAX_SKIPPED} times in a row; the weights are those of the last finite step: "
                "lower the learning rate or the advantages' scale, and resume"
            )
        return {"grad_norm": norm, "learning_rate": rate, "skipped": float(self.skipped)}

    @torch.no_grad()
    def reference_logprobs(self, packed: Packed) -> Tensor:
        """Return log R0 of every trained token under the weights kept by `keep_reference`. [M]"""
        if self._reference is None:
            raise RuntimeError("the recipe has a KL term: call keep_reference() before training")
        return self._reference.logprobs(packed)

    def save(self, folder: Path) -> None:
        """Write weights, optimizer and counters; every process takes part."""
        self.weights.save(folder)
        if ranks.is_main():
            torch.save({"updates": self.updates, "skipped": self.skipped}, folder / "learner.pt")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, by however many processes: bit for bit."""
        self.weights.load(folder)
        state = torch.load(folder / "learner.pt", weights_only=True)
        self.updates, self.skipped = state["updates"], state["skipped"]
