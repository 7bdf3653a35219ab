"""What is saved in time or memory changes the numbers by nothing, or by a little that is seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from miniatures import other, qwen3
from ragged import episodes, gradients, packed_of, relative_gap

from turnwise.trainers.batch import rows_of
from turnwise.trainers.model import add_lora
from turnwise.trainers.precision import bf16
from turnwise.trainers.scorer import Scorer

torch.set_num_threads(1)


@pytest.mark.parametrize("make", [qwen3, lambda: other("llama"), lambda: add_lora(qwen3(), 2)])
def test_recomputed_activations_give_the_very_same_gradient(make):
    model, packed = make(), packed_of(rows_of(episodes()))
    found = []
    for recompute in (False, True):
        scorer = Scorer(model, 256, recompute=recompute)
        found.append(gradients(model, scorer.logprobs(packed), packed))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def held(scorer, packed) -> int:
    """Bytes that the graph of a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scorer.logprobs(packed)
    return sum(kept.values())


def test_recomputed_activations_are_not_kept():
    model, packed = qwen3(), packed_of(rows_of(episodes()))
    whole, again = (held(Scorer(model, 256, recompute=on), packed) for on in (False, True))
    assert again < 0.7 * whole


def test_what_cannot_be_recomputed_is_refused():
    with pytest.raises(ValueError, match="GPT2LMHeadModel: lower micro_tokens"):
        Scorer(other("gpt2"), 256, recompute=True)


@pytest.mark.parametrize("make", [qwen3, lambda: other("gpt2")])
def test_bfloat16_moves_a_logprob_a_little_and_keeps_the_direction_of_the_gradient(make):
    model, packed = make(), packed_of(rows_of(episodes()))
    plain, rounded = Scorer(model, 256), Scorer(model, 256, precision=bf16)
    exact, near = plain.logprobs(packed), rounded.logprobs(packed)
    gap = (exact - near).abs().max().item()
    assert 1e-4 < gap < 0.3, "it is rounded, and bounded"
    wanted = gradients(model, exact, packed)
    assert relative_gap(gradients(model, near, packed), wanted) < 0.2
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_bfloat16_leaves_the_softmax_over_the_vocabulary_in_float32():
    model, packed = qwen3(), packed_of(rows_of(episodes()))
    scorer = Scorer(model, 256, precision=bf16)
    logits_MV = scorer.logits(packed)
    assert logits_MV.dtype == torch.float32
    scaled_MV = (logits_MV / packed.temperature_M[:, None]).double()
    exact_M = scaled_MV.log_softmax(-1).gather(-1, packed.target_M[:, None])[:, 0]
    found_M = scorer.logprobs(packed)
    np.testing.assert_allclose(found_M.tolist(), exact_M.tolist(), atol=1e-5)


def test_attention_on_a_cpu_stays_in_float32_under_bfloat16():
    seen = []

    def attend(layer, q, k, v):
        seen.append((q.dtype, k.dtype, v.dtype, torch.is_autocast_enabled("cpu")))
        return v

    half = torch.ones(1, 1, 1, 2, dtype=torch.bfloat16)
    with bf16(torch.device("cpu")) as attending:
        attending(attend)(0, half, half, half)
        assert torch.is_autocast_enabled("cpu")
    assert seen == [(torch.float32, torch.float32, torch.float32, False)]
