"""The space of all text: gymnasium's own `Text` needs an alphabet and raises on 'é'."""

from __future__ import annotations

from typing import Any

import gymnasium

_ALPHABET = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    "          \n\t\"'\\{}[]()<>/.,:;-_=+*&%$#@!?|~`éüñßøλжд中文日本語한국👋🌍\u200d\u0301\x00"
)


class Unicode(gymnasium.spaces.Space[str]):
    """Every str that UTF-8 can hold, of any length: no lone surrogates, nothing else refused.

    Args:
        max_length: Of samples, in characters. Members may be longer.
        seed: Of `sample`.
    """

    def __init__(self, max_length: int = 64, seed: int | None = None) -> None:
        super().__init__(shape=(), dtype=None, seed=seed)
        self.max_length = max_length

    def contains(self, x: Any) -> bool:
        """Return whether `x` is a str that UTF-8 can hold."""
        if not isinstance(x, str):
            return False
        try:
            x.encode()
        except UnicodeEncodeError:
            return False
        return True

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        """Return random text: letters, digits, quotes, braces, accents, scripts and emoji.

        Args:
            mask: Must be None; there is nothing to mask.
            probability: Must be None.

        Raises:
            ValueError: a mask or probabilities were given.
        """
        if mask is not None or probability is not None:
            raise ValueError("Unicode.sample takes neither a mask nor probabilities")
        length = int(self.np_random.integers(self.max_length + 1))
        picks = self.np_random.integers(len(_ALPHABET), size=length)
        return "".join(_ALPHABET[pick] for pick in picks)

    @property
    def is_np_flattenable(self) -> bool:
        """False: text has no fixed length."""
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unicode)

    def __hash__(self) -> int:
        return hash(Unicode)

    def __repr__(self) -> str:
        return "Unicode()"
