"""A model and a tokenizer made from nothing: no network, no downloaded weights, seconds on a CPU.

Both are ordinary Hugging Face objects (`PreTrainedTokenizerFast`, `Qwen3ForCausalLM`), so that what
runs on them runs on a real model by passing its name. No environment
is known here: the vocabulary is learnt from the transcripts that the caller hands over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SPECIALS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
"""Ids 0 to 5 in this order. `<|end|>` closes every message and is the stop token."""

SEPARATORS = ("", " ", "/", "-", ".", '"', "\n")
"""What a closed-list word may be glued to, by default; each pair is one token of its own."""

MERGES = 512
"""Tokens that a long closed list leaves for all other text."""

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# One piece is a word with the separator before it, or one other character. A path segment is then
# one symbol to the model, and copying a path is copying few symbols: at this size a model learns
# that in minutes, and learns to copy names of several tokens in hours or never.
PIECE = r'[ /\-.|:\n"]?[A-Za-z0-9]+|[^A-Za-z0-9]'
_PIECE = re.compile(PIECE)


def tiny_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 1024,
    words: Sequence[str] = (),
    *,
    separators: Sequence[str] = SEPARATORS,
) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE tokenizer with a chat template from `texts`.

    The same arguments give the same tokenizer, byte for byte. Every Unicode text survives
    encoding and decoding. `eos_token` is `<|end|>`, `pad_token` is `<|pad|>`.

    Args:
        texts: Transcripts to learn from; may be empty, then only bytes and `words` are known.
        vocab_size: Most tokens there may be, specials (6) and bytes (256) included. Few texts
            can give fewer: size the model by `len(tokenizer)`.
        words: A closed list; each word is one token, alone and after each separator.
        separators: Single characters of `[ /-.|:\\n"]`, or the empty string.

    Raises:
        ValueError: `vocab_size` is too small for bytes, specials and `words`, or some word with
            a separator is not one piece (it holds more than letters and digits).
    """
    closed = [separator + word for word in dict.fromkeys(words) for separator in separators]
    _check_pieces(closed)
    room = vocab_size - len(closed)
    if room < len(SPECIALS) + 256:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: {len(SPECIALS)} specials, 256 bytes and "
            f"{len(closed)} closed tokens ({len(words)} words x {len(separators)} separators) need "
            f"{len(SPECIALS) + 256 + len(closed)}; raise it or pass fewer words or separators"
        )
    tokenizer = _with_words(_train(texts, room, frozenset(closed)), closed)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def vocabulary_for(words: Sequence[str], separators: Sequence[str]) -> int:
    """Return how many tokens there may be with this closed list: 1024, or more for a long one."""
    closed = len(set(words)) * len(separators)
    return max(1024, len(SPECIALS) + 256 + closed + MERGES)


def _check_pieces(closed: Sequence[str]) -> None:
    for text in closed:
        if not _PIECE.fullmatch(text) or not text[-1].isalnum():
            raise ValueError(
                f"{text!r} cannot be one token: a closed word is letters and digits of ASCII, "
                f"after at most one of the separators in {PIECE!r}"
            )


def _train(texts: Iterable[str], vocab_size: int, closed: frozenset[str]) -> Tokenizer:
    """Learn merges from every piece that is not a closed word: those need none (see below)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[AddedToken(name, normalized=False, special=True) for name in SPECIALS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    split = re.compile("|".join(map(re.escape, SPECIALS)))
    pieces = (
        [piece for part in split.split(text) for piece in _PIECE.findall(part)] for text in texts
    )
    open_pieces = ([piece for piece in row if piece not in closed] for row in pieces)
    tokenizer.train_from_iterator(open_pieces, trainer)
    return tokenizer


def _with_words(tokenizer: Tokenizer, closed: Sequence[str]) -> Tokenizer:
    """Add each closed word as a whole: `ignore_merges` takes a piece that the vocabulary holds.

    So a word costs one entry and no entries for its beginnings, and the promise "one token"
    holds by construction instead of by hoping that the training text was frequent enough.
    """
    state = json.loads(tokenizer.to_str())
    state["model"]["ignore_merges"] = True
    vocab = state["model"]["vocab"]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in closed:
        ((symbols, _),) = byte_level.pre_tokenize_str(text)
        vocab.setdefault(symbols, len(vocab))
    tokenizer = Tokenizer.from_str(json.dumps(state))
    for text in closed:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) != 1:
            raise AssertionError(f"{text!r} became {len(ids)} tokens instead of one")
    return tokenizer


def tiny_model(
    vocab_size: int,
    *,
    hidden: int = 96,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    ffn: int = 192,
    rope_theta: float = 30.0,
    init_std: float = 0.1,
    max_len: int = 1024,
    tied: bool = True,
    seed: int,
) -> Qwen3ForCausalLM:
    """Return a randomly initialised Qwen3 model in fp32 on the CPU, in eval mode.

    The same arguments give the same weights; no global random state is read or changed.

    The defaults are not those of a large model, and they matter. RoPE's slowest pair turns once in
    about `2 * pi * rope_theta` positions; with a base of 10,000 most pairs tell distances that a
    short transcript does not have, and a model of this size does not learn to copy. An initial
    scale of 0.02 suits wide layers; at width 96 training first waits for the signal to grow.

    Args:
        vocab_size: Rows of the embedding: `len(tokenizer)`.
        tied: Read and write tokens with one matrix. An agent of this kind mostly *copies* names
            that it has read, and with one matrix a copied token is its own read-out, so the
            skill is half there at the start (and a third of the weights is saved).
        max_len: Positions that the model declares; the engine refuses longer episodes.
    """
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_len,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        initializer_range=init_std,
        tie_word_embeddings=tied,
        eos_token_id=SPECIALS.index("<|end|>"),
        pad_token_id=None,  # a padding row would be frozen at zero, and rows are packed anyway
        dtype=torch.float32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.eval()
    return model
