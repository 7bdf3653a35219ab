"""Arguments as plain text, for formats that leave their type to the tool's schema."""

from __future__ import annotations

import json
from typing import Any


def word(value: Any) -> str:
    """Return the text that stands for a JSON value; a str stands for itself.

    Raises:
        ValueError: it holds NaN or an infinity.
    """
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
