"""Logits of the trained positions alone are those of the whole model, or it is run itself."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import VOCAB, other, qwen3
from ragged import episodes, gradients, naive, packed_of, relative_gap, warmed
from test_vocabulary import METHODS, Widest
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
)

from turnwise.trainers.batch import rows_of
from turnwise.trainers.halves import halves
from turnwise.trainers.learner import Learner
from turnwise.trainers.model import add_lora
from turnwise.trainers.model_teacher import frozen
from turnwise.trainers.precision import bf16
from turnwise.trainers.scorer import Scorer
from turnwise.trainers.teaching import score

torch.set_num_threads(1)

SHAPE = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
GPT2 = GPT2Config(
    vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3,
    bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
)  # fmt: skip


def made(make, seed=0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def gemma2(cap):
    config = Gemma2Config(**SHAPE, head_dim=8, initializer_range=0.3, final_logit_softcapping=cap)
    return made(lambda: AutoModelForCausalLM.from_config(config, attn_implementation="eager"))


class Altered(GPT2LMHeadModel):
    """A model that does more than backbone and output layer; the parameter begins where it shows
    in no number."""

    def __init__(self, config):
        super().__init__(config)
        self.more = nn.Parameter(torch.zeros(config.vocab_size))
        self.post_init()

    def forward(self, **inputs):
        out = super().forward(**inputs)
        out.logits = out.logits + self.more
        return out


class Prompted(nn.Module):
    """A wrapper that puts a token in front of what its model reads, as a learnt prompt does."""

    def __init__(self, causal):
        super().__init__()
        self.causal, self.config = causal, causal.config

    def get_base_model(self):
        return self.causal

    def forward(self, input_ids, attention_mask=None):
        ids = torch.cat((torch.full_like(input_ids[:, :1], 5), input_ids), 1)
        out = self.causal(input_ids=ids)
        out.logits = out.logits[:, 1:]
        return out


class Wrapped(nn.Module):
    """What data parallelism puts around a model."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, **inputs):
        return self.module(**inputs)


class Dividing(GPT2LMHeadModel):
    """What the output layer reads is less than what the backbone gives."""

    def __init__(self, config):
        super().__init__(config)
        self.lm_head.register_forward_pre_hook(lambda layer, args: (args[0] / 2,))


class Own(GPT2LMHeadModel):
    """What else the forward pass of a causal model does between its halves and behind them."""

    def forward(self, input_ids, attention_mask=None):
        out = self.transformer(input_ids=input_ids, attention_mask=attention_mask)
        out.logits = self.said(out.last_hidden_state)
        return out


class ByItsWeight(Own):
    """The output layer is never called."""

    def said(self, hidden):
        return 2 * hidden @ self.lm_head.weight.T


class Halving(Own):
    """The output layer reads half of what the backbone gives."""

    def said(self, hidden):
        return self.lm_head(hidden / 2)


class Clamping(Own):
    """Logits are as they are until they are large."""

    def said(self, hidden):
        return self.lm_head(hidden).clamp(-5000, 5000)


class Nameless(Own):
    """Nothing says which layer is the output layer."""

    def said(self, hidden):
        return self.lm_head(hidden)

    def get_output_embeddings(self):
        return None


class Demanding(Nameless):
    """The backbone wants to be told more than ids and mask."""

    def __init__(self, config):
        super().__init__(config)
        self.run = self.transformer.forward
        self.transformer.forward = self.told

    def told(self, *, input_ids, attention_mask, factor):
        return self.run(input_ids=input_ids, attention_mask=attention_mask)

    def forward(self, input_ids, attention_mask=None):
        out = self.transformer(input_ids=input_ids, attention_mask=attention_mask, factor=1)
        out.logits = self.lm_head(out.last_hidden_state)
        return out

    def get_output_embeddings(self):
        return self.lm_head


APART = {
    "gpt2": lambda: other("gpt2"),
    "gpt2, untied": lambda: made(lambda: GPT2LMHeadModel(GPT2)),
    "gpt2 with adapters": lambda: warmed(add_lora(other("gpt2"), 2)),
    "llama": lambda: other("llama"),
    "qwen2": lambda: other("qwen2"),
    "qwen3": qwen3,
    "gemma2 without a cap": lambda: gemma2(None),
}
WHOLE = {
    "gemma2": lambda: gemma2(30.0),
    "gemma2 with a high cap": lambda: gemma2(3000.0),
    "granite": lambda: made(
        lambda: AutoModelForCausalLM.from_config(GraniteConfig(**SHAPE, logits_scaling=8.0))
    ),
    "a parameter besides": lambda: made(lambda: Altered(GPT2)),
    "a learnt prompt": lambda: Prompted(other("gpt2")),
    "a layer not called": lambda: made(lambda: ByItsWeight(GPT2)),
    "a layer that reads half": lambda: made(lambda: Halving(GPT2)),
    "a layer without a name": lambda: made(lambda: Nameless(GPT2)),
    "a clamp": lambda: made(lambda: Clamping(GPT2)),
    "a backbone that wants more": lambda: made(lambda: Demanding(GPT2)),
}


def scorer_of(model, at_once=VOCAB * 7) -> Scorer:
    """A scorer without a functional form that holds so many logits."""
    scorer = Scorer(model, 256)
    scorer.decoder, scorer.logits_at_once = None, at_once
    return scorer


def entropies(model, rows):
    """Of each trained token, from one forward pass per row."""
    found = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row.ids])).logits[0].detach().float()
        at = [row.start + i - 1 for i in row.trained]
        scaled = logits[at] / torch.tensor(row.temperature)[:, None]
        found.append(torch.distributions.Categorical(logits=scaled).entropy())
    return torch.cat(found)


@pytest.mark.parametrize("kind", APART | WHOLE)
def test_logprobs_entropies_and_gradients_are_those_of_the_whole_model(kind):
    model = (APART | WHOLE)[kind]()
    rows = rows_of(episodes(temperature=0.7))
    packed, expected_M = packed_of(rows), naive(model, rows)
    found_M, entropy_M = scorer_of(model).logprobs_and_entropy(packed)
    torch.testing.assert_close(found_M, expected_M, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy_M, entropies(model, rows), rtol=1e-5, atol=1e-5)
    expected = gradients(model, expected_M, packed)
    assert relative_gap(gradients(model, found_M, packed), expected) < 1e-5


@pytest.mark.parametrize("kind", APART)
def test_the_output_layer_sees_the_trained_positions_alone_and_few_at_once(kind):
    model = APART[kind]()
    scorer, packed = scorer_of(model), packed_of(rows_of(episodes()))
    assert scorer.halves is not None
    seen = []
    model.get_output_embeddings().register_forward_hook(
        lambda layer, args, out: seen.append(out.numel() // VOCAB)
    )
    with Widest(VOCAB) as widest:
        logprobs_M = scorer.logprobs(packed)
        forward = list(seen)
        logprobs_M.sum().backward()
    assert sum(forward) == len(packed.target_M) < len(packed.ids_N)
    assert max(seen) == 7 and sum(seen) == 2 * sum(forward)
    assert widest.rows <= 32, "the gradient of the layer's weight, by 32 hidden numbers, is widest"


@pytest.mark.parametrize("kind", WHOLE)
def test_a_model_that_does_more_is_run_as_a_whole(kind):
    assert halves(WHOLE[kind](), 256) is None


def test_a_layer_that_changes_what_it_reads_is_called_as_the_model_calls_it():
    model = made(lambda: Dividing(GPT2))
    packed, expected_M = packed_of(rows_of(episodes())), naive(model, rows_of(episodes()))
    torch.testing.assert_close(scorer_of(model).logprobs(packed), expected_M, rtol=1e-5, atol=1e-5)


def test_a_wrapper_that_acts_in_its_own_forward_pass_is_not_passed_by():
    model, calls = Wrapped(other("gpt2")), []
    model.register_forward_hook(lambda *_: calls.append(1))
    packed = packed_of(rows_of(episodes()))
    scorer = scorer_of(model)
    assert scorer.halves is None
    expected_M = naive(model.module, rows_of(episodes()))
    torch.testing.assert_close(scorer.logprobs(packed), expected_M, rtol=1e-5, atol=1e-5)
    assert len(calls) == 1


@pytest.mark.parametrize("training", [True, False])
def test_the_proof_leaves_the_model_as_it_was(training):
    model = other("gpt2").train(training)
    model.transformer.h[1].train(not training)  # as a wrapper may stand in another mode
    modes = [part.training for part in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert halves(model, 4) is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in model.modules()] == modes
    assert not model.lm_head._forward_hooks and model.lm_head.weight.grad is None
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


SHARDED = """
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from miniatures import other
from turnwise.trainers.batch import Row, pack, totals_of
from turnwise.trainers.scorer import Scorer
from turnwise.trainers.sharded import shard
from turnwise.trainers.surrogates import token_mean
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
rows = [Row((3, 4, 5), [6, 7, 8 + i], [0, 2], [-4.0] * 2, [i] * 2, [1.0] * 2, i) for i in range(4)]
packed, found = pack(rows, aggregate=token_mean, totals=totals_of(rows)), []
by_hand = lambda scorer: fully_shard(scorer.model, mesh=init_device_mesh("cpu", (1,)))
for split in (None, by_hand, shard):
    model = other("gpt2")
    scorer, read = Scorer(model, 256), []
    scorer.logits_at_once = 3 * model.config.vocab_size
    model.lm_head.register_forward_pre_hook(lambda _, args: read.append(args[0].shape[:-1].numel()))
    if split:
        split(scorer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scorer.halves, steps = scorer.halves, []
    read.clear()
    for _ in range(2):
        loss = -scorer.logprobs(packed).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.append(loss.item())
    assert (scorer.halves is None) == (split is by_hand)
    assert (max(read) <= 3) == (split is not by_hand), read
    found.append(steps)
assert found[0][0] > found[0][1], found
for other_way in found[1:]:
    torch.testing.assert_close(found[0], other_way, rtol=1e-5, atol=1e-5)
"""


def test_a_sharded_model_learns_the_same_and_gives_few_logits_at_once():
    command = [sys.executable, "-c", SHARDED]
    told = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-2000:]


# Who uses it


@pytest.mark.parametrize("needs", [(), ("top", "reverse_kl", "entropy", "overlap")])
def test_teacher_and_student_without_a_functional_form_hold_few_logits_at_once(needs):
    learner = Learner(other("gpt2"), learning_rate=1e-3, max_len=256)
    teacher = frozen(other("gpt2", 1), 256)
    rows = rows_of(episodes())
    whole = score(rows, learner, teacher, needs)
    learner.scorer.logits_at_once = VOCAB * 7
    with Widest(VOCAB) as widest:
        parts = score(rows, learner, teacher, needs)
    assert whole.keys() == parts.keys() and len(whole["teacher_M"]) > 7
    for column, values in whole.items():
        np.testing.assert_allclose(parts[column], values, rtol=1e-5, atol=1e-5)
    assert widest.rows == 7


@pytest.mark.parametrize("name", METHODS)
def test_a_step_by_parts_is_the_step_of_the_whole_model(name):
    rows = [replace(row, direct=[0.5] * len(row.trained)) for row in rows_of(episodes())]
    advantages = np.random.default_rng(0).normal(size=200)
    found = []
    for apart in (False, True):
        learner = Learner(other("gpt2"), learning_rate=1e-3, max_len=256)
        teacher = frozen(other("gpt2", 1), 256) if METHODS[name].distillation else None
        if apart:
            learner.scorer.logits_at_once = VOCAB * 7
        for scorer in (learner.scorer, *([teacher.scorer] if teacher else [])):
            scorer.__dict__["halves"] = scorer.halves if apart else None
        found.append(learner.improve(rows, advantages, METHODS[name], teacher))
    assert found[0].keys() == found[1].keys() and found[0]["loss"] != 0
    for key, value in found[0].items():
        assert found[1][key] == pytest.approx(value, rel=1e-5, abs=1e-5), key


def test_what_is_scored_later_has_the_precision_of_its_scorer():
    scorer, packed = Scorer(other("gpt2"), 256), packed_of(rows_of(episodes()))
    expected = scorer.logits(packed)
    with torch.no_grad(), bf16(torch.device("cpu")):
        found = scorer.by_parts(packed)(slice(None))
    assert torch.equal(found, expected)
    rounded = Scorer(other("gpt2"), 256, precision=bf16).by_parts(packed)(slice(None))
    assert 1e-4 < float((rounded - expected).detach().abs().max()) < 1
