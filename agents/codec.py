"""Text to token ids and back, with control tokens under control.

Hugging Face tokenizers turn a control token's *text* into its id wherever it stands: a file that
contains `<|end|>` would end the message that quotes it. Here only the chat template can write
control tokens; the same characters inside a message become ordinary tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from turnwise.envs.actions import FORMATS
from turnwise.envs.formats.reading import THOUGHT_TAGS

TAGS = tuple(
    dict.fromkeys(
        [
            *THOUGHT_TAGS,
            *(tag for form in FORMATS.values() for tag in form.tags),
            *("<tool_response>", "</tool_response>"),
        ]
    )
)
"""Markers that an agent itself may write. Where a tokenizer has an id for one, the id is used in
`system` and `assistant` messages; in what others wrote it is ordinary text."""


_SURROGATE = re.compile("[\ud800-\udfff]")


class Codec:
    """Encodes rendered chat text for one tokenizer.

    Attributes:
        control: Text to id of the control tokens: the special ones, those that the template
            writes, and `TAGS`. Other added tokens (runs of blanks, HTML tags) are vocabulary.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        added = {t.content: (i, t) for i, t in tokenizer.added_tokens_decoder.items()}
        names = [name for name, (_, token) in added.items() if _is_control(token, template)]
        self.control = {name: added[name][0] for name in names}
        self._tokenizer = tokenizer
        self._find = _pattern([added[name][1] for name in names])
        self._hostile = re.compile("|".join(map(re.escape, _longest_first(names))) or r"(?!)")
        orders = [name for name in names if name not in TAGS]
        self._orders = re.compile("|".join(map(re.escape, _longest_first(orders))) or r"(?!)")
        self.plain = self._plain_encoder(added)

    def mark(self, text: str, blank: str, *, trusted: bool) -> str:
        """Put the character `blank` inside whatever in `text` reads as a control token.

        Args:
            blank: A character that no message holds; `encode` takes it out again.
            trusted: The agent or the environment's author wrote `text`: `TAGS` keep their ids.
        """
        pattern = self._orders if trusted else self._hostile
        while pattern.search(text):  # a token such as `aa` is found again in `aaa` after one pass
            text = pattern.sub(lambda match: match[0][0] + blank + match[0][1:], text)
        return text

    def encode(self, text: str, blank: str = "") -> list[int]:
        """Return the ids of rendered `text`: control tokens by name, the rest as plain text."""
        ids: list[int] = []
        for part in self.split(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self.plain(part.replace(blank, "") if blank else part)
        return ids

    def split(self, text: str) -> list[str | int]:
        """Return `text` as plain runs (text) and control tokens (ids), in order."""
        parts: list[str | int] = []
        at = 0
        for match in self._find.finditer(text):
            if match.start() > at:
                parts.append(text[at : match.start()])
            parts.append(self.control[match[match.lastgroup or 0]])
            at = match.end()
        return [*parts, text[at:]] if at < len(text) else parts

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; control tokens by name, bytes that are no text as U+FFFD."""
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _plain_encoder(self, added: dict[str, Any]) -> Callable[[str], list[int]]:
        """Return the encoder of text in which no control token can occur."""
        bare = _without_added(self._tokenizer)
        vocabulary = [added[name][1] for name in added if name not in self.control]
        if not vocabulary:
            return bare
        find, ids_of = _pattern(vocabulary), {name: entry[0] for name, entry in added.items()}

        def encode(text: str) -> list[int]:
            ids: list[int] = []
            at = 0
            for match in find.finditer(text):
                ids += bare(text[at : match.start()]) if match.start() > at else ()
                ids.append(ids_of[match[match.lastgroup or 0]])
                at = match.end()
            return ids + bare(text[at:]) if at < len(text) else ids

        return encode


def _is_control(token: Any, template: str) -> bool:
    return (
        token.special
        or token.content in TAGS
        or (not token.content.isspace() and token.content in template)
    )


def _longest_first(names: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: (-len(name), name))


def _pattern(tokens: Sequence[Any]) -> re.Pattern[str]:
    """Match added tokens as the tokenizer does: leftmost, longest, with the blanks it eats."""
    by_name = {token.content: token for token in tokens}
    alternatives = [
        (r"\s*" if by_name[name].lstrip else "")
        + f"(?P<t{i}>{re.escape(name)})"
        + (r"\s*" if by_name[name].rstrip else "")
        for i, name in enumerate(_longest_first(list(by_name)))
    ]
    return re.compile("|".join(alternatives) or r"(?!)")


def _without_added(tokenizer: Any) -> Callable[[str], list[int]]:
    """Return an encoder that knows no added token at all, and adds nothing by itself."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TypeError(
            f"{type(tokenizer).__name__} has no `backend_tokenizer`: load the fast tokenizer "
            "(AutoTokenizer does), the slow ones cannot keep control tokens out of plain text"
        )
    state = json.loads(backend.to_str())
    state |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    text = json.dumps(state, ensure_ascii=False)
    # A run of plain text follows a control token, so it is never the start of the whole text.
    text = re.sub(r'"prepend_scheme":\s*"first"', '"prepend_scheme": "never"', text)
    bare = type(backend).from_str(text).encode

    def encode(run: str) -> list[int]:
        try:
            ids: list[int] = bare(run, add_special_tokens=False).ids
        except TypeError:  # lone surrogates, as in a file name that is not UTF-8
            ids = bare(_SURROGATE.sub("\ufffd", run), add_special_tokens=False).ids
        return ids

    return encode
