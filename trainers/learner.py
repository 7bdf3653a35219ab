"""Rows in, one optimizer step out: the only place that holds a gradient.

Accelerate places the model, runs the backward pass and writes checkpoints. Denominators are those
of the whole batch, so micro-batches add up exactly.
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
from accelerate import Accelerator
from torch import Tensor, nn

from turnwise.agents.engines.functional import base_model
from turnwise.trainers.batch import Packed, Row, micro_batches, pack, totals_of
from turnwise.trainers.divergences import Direct, Scores
from turnwise.trainers.model import quiet
from turnwise.trainers.objective import Metrics, cross_entropy, merge, objective
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.scorer import Scorer
from turnwise.trainers.surrogates import Aggregate, Totals, token_mean
from turnwise.trainers.teachers import Teacher, scores_by

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
    ) -> None:
        self.accelerator = Accelerator()
        if self.accelerator.num_processes > 1:
            raise NotImplementedError(
                f"{self.accelerator.num_processes} processes were launched, and training runs in "
                "one: its gradients are not yet summed over processes"
            )
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=learning_rate, betas=betas, weight_decay=weight_decay
        )
        # Not train(): dropout would make the log-probabilities differ from those of the engine.
        self.model, self.optimizer = self.accelerator.prepare(model.eval(), optimizer)
        self.scorer = Scorer(self.model, max_len)
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
        totals, filled = totals_of(rows), []
        for some in micro_batches(rows, self.micro_tokens):
            device = self.accelerator.device
            packed = pack(some, aggregate=token_mean, totals=totals, device=device)
            found = self.scorer.logprobs(packed).tolist()
            for row in some:
                filled.append(replace(row, prox=found[: len(row.trained)]))
                del found[: len(row.trained)]
        return filled

    def log_distribution(self, packed: Packed) -> Tensor:
        """Return log pi over the vocabulary at each trained token, with its graph. [M, V]"""
        return (self.scorer.logits(packed) / packed.temperature_M[:, None]).log_softmax(-1)

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
        student_MV = self.log_distribution(packed)
        with torch.no_grad():
            teacher_MV = scores_by(teacher, packed, self.vocabulary)
            entropy_M = -(student_MV.exp() * student_MV).sum(-1)
        scores = Scores(student_MV, teacher_MV, packed.target_M, packed.tokens.old_M)
        return scores.chosen_M, entropy_M, how.direct(scores)

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
        with torch.no_grad():
            teacher_MV = scores_by(teacher, packed, self.vocabulary)
        student_MV = self.log_distribution(packed)
        scores = Scores(student_MV, teacher_MV, packed.target_M, packed.tokens.old_M)
        divergence_M = direct(scores)
        _, metrics = cross_entropy(scores.chosen_M.detach(), weight_M)
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
            for some in micro_batches(rows, self.micro_tokens):
                packed = pack(
                    some,
                    advantages=advantages,
                    aggregate=aggregate,
                    totals=totals,
                    device=self.accelerator.device,
                )
                loss, part = loss_of(packed)
                self.accelerator.backward(loss)
                losses.append(loss.item())
                seen.append(part)
        metrics = merge(seen)
        metrics |= {"loss": math.fsum(losses), "trained_tokens": float(totals.tokens)}
        return metrics | self._apply(metrics["loss"])

    def _apply(self, loss: float) -> dict[str, float]:
        """Clip and step, unless something is not finite: then forget the gradient."""
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm))
        if math.isfinite(loss) and math.isfinite(norm):
            rate = self.learning_rate * self.schedule(self.updates)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
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
        """Write model, optimizer and counters with Accelerate."""
        with quiet():
            self.accelerator.save_state(str(folder))
        torch.save({"updates": self.updates, "skipped": self.skipped}, folder / "learner.pt")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, bit for bit."""
        self.accelerator.load_state(str(folder))
        state = torch.load(folder / "learner.pt", weights_only=True)
        self.updates, self.skipped = state["updates"], state["skipped"]
