"""The tokenizer and the model that are made from nothing."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from turnwise.trainers.tiny import SEPARATORS, SPECIALS, tiny_model, tiny_tokenizer

WORDS = ("maple", "owl", "red", "tag")
TEXTS = ["cat /maple/red-owl\nThe next clue is: ls /maple | grep tag/otter <|end|>"] * 30


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer(TEXTS, words=WORDS)


def ids_of(text: str) -> list[int]:
    return tokenizer().encode(text, add_special_tokens=False)


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_every_text_survives_encoding_and_decoding(text: str):
    decoded = tokenizer().decode(ids_of(text), skip_special_tokens=False)
    assert decoded == text


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("word", WORDS)
def test_a_closed_word_is_one_token_with_each_separator(word: str, separator: str):
    (token,) = ids_of(separator + word)
    assert tokenizer().decode([token]) == separator + word


@given(st.lists(st.tuples(st.sampled_from("/-."), st.sampled_from(WORDS)), min_size=1))
@settings(deadline=None)
def test_a_path_of_closed_words_has_one_token_per_word(path: list[tuple[str, str]]):
    assert len(ids_of("".join(map("".join, path)))) == len(path)


def test_a_frequent_word_is_one_token_with_its_separator_though_it_is_not_listed():
    assert len(ids_of("/otter")) == 1
    assert tokenizer().tokenize("cat /maple")[1:] == ["Ġ", "/maple"]


def test_specials_have_the_first_ids_and_end_stops():
    assert [tokenizer().convert_tokens_to_ids(name) for name in SPECIALS] == list(range(6))
    assert (tokenizer().eos_token, tokenizer().pad_token) == ("<|end|>", "<|pad|>")


def test_specials_in_the_texts_are_not_learnt_as_text():
    learnt = set(tokenizer().get_vocab()) - set(SPECIALS)
    assert not any("|e" in name or "end" in name for name in learnt)


def test_the_same_texts_give_the_same_tokenizer_bytes():
    again = tiny_tokenizer(TEXTS, words=WORDS)
    assert again.backend_tokenizer.to_str() == tokenizer().backend_tokenizer.to_str()
    assert again.chat_template == tokenizer().chat_template


@pytest.mark.parametrize("vocab_size", [290, 300, 320])
def test_the_vocabulary_is_never_larger_than_asked(vocab_size: int):
    texts = [f"word{i} other{i}" for i in range(50)] * 2
    assert len(tiny_tokenizer(texts, vocab_size)) == vocab_size
    assert len(tiny_tokenizer(texts, vocab_size, WORDS)) == vocab_size


def test_without_texts_there_are_bytes_and_words():
    bare = tiny_tokenizer([], words=["owl"], separators=["/"])
    assert len(bare) == len(SPECIALS) + 256 + 1


def test_closed_words_take_no_room_for_their_beginnings():
    learnt = tiny_tokenizer(["/maple/owl"] * 50, words=["maple", "owl"], separators=["/"])
    assert len(learnt) == len(SPECIALS) + 256 + 2


def test_too_many_words_for_the_vocabulary_are_refused_with_the_size_that_fits():
    with pytest.raises(ValueError, match=r"vocab_size 262 is too small.*need 264; raise it"):
        tiny_tokenizer([], 262, ["owl", "fox"], separators=["/"])
    assert len(tiny_tokenizer([], 264, ["owl", "fox"], separators=["/"])) == 264


@pytest.mark.parametrize("word", ["two words", "é", "", "a-b"])
def test_a_word_that_cannot_be_one_token_is_refused(word: str):
    with pytest.raises(ValueError, match="cannot be one token"):
        tiny_tokenizer([], words=[word])


def test_the_template_closes_each_message_and_opens_the_agents():
    messages = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "ls"}]
    text = tokenizer().apply_chat_template(messages, tokenize=False)
    assert text == "<|user|>go<|end|><|assistant|>ls<|end|>"
    prompt = tokenizer().apply_chat_template(
        messages[:1], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|user|>go<|end|><|assistant|>"


def test_a_saved_tokenizer_comes_back_the_same(tmp_path):
    tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "cat /maple/red-owl blé <|end|> 漢字"
    assert loaded.encode(text, add_special_tokens=False) == ids_of(text)
    assert loaded.chat_template == tokenizer().chat_template
    assert (loaded.eos_token_id, loaded.pad_token_id) == (1, 0)


def weights(seed: int, **shape) -> list[torch.Tensor]:
    return [p.detach() for p in tiny_model(300, seed=seed, **shape).parameters()]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    torch.manual_seed(1)
    first = weights(7)
    torch.manual_seed(2)
    assert all(map(torch.equal, first, weights(7)))
    assert not torch.equal(first[0], weights(8)[0])


def test_making_a_model_leaves_the_global_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    weights(7)
    assert torch.equal(before, torch.get_rng_state())


def test_rope_and_initial_scale_are_those_asked_for():
    model = tiny_model(2000, seed=0, rope_theta=50.0, init_std=0.2, head_dim=32)
    slowest = 50.0 ** (-30 / 32)
    assert model.model.rotary_emb.inv_freq[-1].item() == pytest.approx(slowest, rel=1e-5)
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(0.2, rel=0.02)
    assert model.model.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(0.2, rel=0.02)


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_comes_back_with_the_same_weights(tmp_path, tied: bool):
    model = tiny_model(300, seed=0, tied=tied)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, loaded(ids).logits)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert loaded.config.rope_parameters["rope_theta"] == 30.0
    assert loaded.config.eos_token_id == tokenizer().eos_token_id


def test_the_default_model_is_a_quarter_of_a_million_parameters():
    assert sum(w.numel() for w in weights(0)) < 250_000
