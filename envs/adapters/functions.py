"""Functions as arguments of an environment, so that a record can name them: `module:function`."""

from __future__ import annotations

import importlib
from typing import Any


def function_at(value: Any) -> Any:
    """Return a function, or the one at `module:function`; None for None.

    Raises:
        ValueError: there is none.
    """
    if value is None or callable(value):
        return value
    module, _, name = str(value).partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"no function {value!r}: write module:function ({error})") from error


def place_of(function: Any) -> str | None:
    """Return `module:function` where another process finds it, else None."""
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    found = getattr(importlib.import_module(module), name, None) if module else None
    return f"{module}:{name}" if found is function and module != "__main__" else None
