"""Laws of hints: where they stand in a prompt, and what they change of the scores and what not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from miniatures import qwen3
from pupils import NOW, episodes_of, learner_of, packed_of, parts
from toy_runs import fresh

from turnwise.agents.renderer import Renderer
from turnwise.trainers.batch import Row
from turnwise.trainers.contexts import message_ids, outcome_hint, with_context
from turnwise.trainers.distillation import Distillation
from turnwise.trainers.model_teacher import frozen, self_base
from turnwise.trainers.signals import contrast, reverse_kl
from turnwise.trainers.teaching import distil, score, token_table

torch.set_num_threads(1)


# ------------------------------------------------------------ privileged context


def test_a_hint_is_one_more_user_message_before_the_agent_speaks():
    _, tokenizer = fresh()
    renderer = Renderer(tokenizer)
    prompt = renderer.open([{"role": "user", "content": "walk 7"}])
    ids, behind = message_ids(renderer, "it works")
    at = len(prompt) - len(behind)
    longer = [*prompt[:at], *ids, *prompt[at:]]
    both = [{"role": "user", "content": "walk 7"}, {"role": "user", "content": "it works"}]
    assert longer == renderer.open(both)


def test_the_teacher_reads_the_prompt_that_the_template_gives_of_both_messages():
    _, tokenizer = fresh()
    renderer, (whole,) = Renderer(tokenizer), episodes_of(qwen3(), groups=1, attempts=1)
    said = {"role": "user", "content": "walk 7"}
    row = Row(tuple(renderer.open([said])), [4, 5], [0], [0.0], [0], [1.0], 0)
    (told,) = with_context([row], whole.episodes, outcome_hint, renderer)
    hint = {"role": "user", "content": outcome_hint(whole.episodes[0])}
    assert list(told.hinted().prompt) == renderer.open([said, hint])


def test_the_hint_changes_the_scores_of_the_same_tokens_and_its_hits_are_counted():
    model, tokenizer = fresh()
    rows, table, episodes = parts(episodes_of(model))
    _, behind = message_ids(Renderer(tokenizer), "x")
    rows = [replace(row, prompt=(*row.prompt, *behind)) for row in rows]
    learner, teacher = learner_of(model), self_base(model, 256)
    hinted = with_context(rows, episodes, outcome_hint, Renderer(tokenizer))
    assert all(
        a.rest == b.rest and a.trained == b.trained for a, b in zip(rows, hinted, strict=True)
    )
    assert all(len(row.hinted().prompt) == len(row.prompt) + len(row.hint) for row in hinted)
    plain, told = (score(some, learner, teacher)["teacher_M"] for some in (rows, hinted))
    assert (np.abs(plain - told) > 1e-7).mean() > 0.9
    how = Distillation(signal=reverse_kl)
    for some, hits in ((rows, 0.0), (hinted, 1.0)):
        _, said = distil(
            some, np.zeros(len(table)), table, episodes,
            learner=learner, teacher=teacher, how=how, progress=NOW,
        )  # fmt: skip
        assert said["teacher_context"] == hits


def test_a_hint_inside_a_message_is_refused_and_so_is_one_that_says_nothing():
    _, tokenizer = fresh()
    renderer, (whole,) = Renderer(tokenizer), episodes_of(qwen3(), groups=1, attempts=1)
    prompt = tuple(renderer.open([{"role": "user", "content": "walk 7"}]))
    behind = message_ids(renderer, "x")[1]

    def told(ids, context=outcome_hint):
        row = Row(ids, [4, 5], [0], [0.0], [0], [1.0], 0)
        return with_context([row], whole.episodes, context, renderer)

    assert behind and told(prompt)[0].hint_at == len(prompt) - len(behind)
    for ids in (prompt[:-1], (*prompt, 5), (5,), ()):
        with pytest.raises(ValueError, match="would stand inside a message"):
            told(ids)
    for blank in (" ", "\n\t "):
        with pytest.raises(ValueError, match="told nothing, return ''"):
            told(prompt, lambda episode, blank=blank: blank)
    (nothing,) = told(prompt[:-1], lambda episode: "")
    assert nothing.hint == () and nothing.hinted() == nothing


@pytest.mark.parametrize("at", [-1, 4])
def test_a_hint_has_its_place_in_the_prompt(at):
    row = Row((1, 2, 3), [4], [0], [0.0], [0], [1.0], 0)
    with pytest.raises(ValueError, match=f"from 0 to 3 of its prompt, got {at}"):
        replace(row, hint=(7,), hint_at=at)
    for end in (0, 3):
        assert replace(row, hint=(7,), hint_at=end).hinted().prompt[end] == 7


def test_a_contrast_is_felt_exactly_where_there_is_a_hint():
    student = qwen3(0)
    rows, table, episodes = parts(episodes_of(student))
    some = [a if i % 2 else b for i, (a, b) in enumerate(zip(rows, hints_of(rows, 6), strict=True))]
    found = score(some, learner_of(student), frozen(qwen3(1), 256), ("against",))
    felt = contrast(token_table(some, table, episodes, found))
    told = np.array([bool(row.hint) for row in some for _ in row.trained])
    assert not felt[~told].any() and (np.abs(felt[told]) > 1e-6).all()


def hints_of(rows, length):
    return [replace(row, hint=tuple(range(1, length + 1)), hint_at=2) for row in rows]


def test_a_hint_finds_room_as_far_as_the_model_has_positions_and_what_is_longer_has_no_score():
    student = qwen3(0)
    rows, table, episodes = parts(episodes_of(student))
    hinted = hints_of(rows, 20)
    lengths = [len(row.hinted().ids) for row in hinted]
    positions = sorted(lengths)[3]
    longest = max(len(row.ids) for row in rows)
    assert longest < positions < max(lengths)
    learner, small = learner_of(student), frozen(qwen3(1, max_len=positions), longest)
    found = score(hinted, learner, small, ("top",))
    expected = score(hinted, learner, frozen(qwen3(1), 256), ("top",))
    fits = np.array([n <= positions for n, r in zip(lengths, rows, strict=True) for _ in r.trained])
    for name, column in found.items():
        np.testing.assert_allclose(column[fits], expected[name][fits], atol=1e-6)
        assert np.isnan(column[~fits]).all()
    _, said = distil(
        hinted, np.zeros(len(table)), table, episodes,
        learner=learner, teacher=small, how=Distillation(signal=reverse_kl), progress=NOW,
    )  # fmt: skip
    assert said["teacher_missing"] == pytest.approx(1 - fits.mean())
    assert np.isnan(score(hints_of(rows, 99), learner, small)["teacher_M"]).all()
    with pytest.raises(ValueError, match="longer than max_len"):
        frozen(qwen3(1), longest - 1).logprobs(packed_of(rows))


def test_a_hint_stands_at_its_place_and_moves_no_answer():
    row = Row((1, 2, 3), [4, 5], [0], [0.0], [0], [1.0], 0, hint=(7, 8), hint_at=2)
    assert row.hinted().prompt == (1, 2, 7, 8, 3) and row.hinted().rest == [4, 5]
