"""Optional dependencies: imported where they are used, missed with the command that helps."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingExtra(ImportError):
    """A package that only one extra needs is not installed; the message holds the command."""


def need(module: str, *, extra: str) -> ModuleType:
    """Import and return `module`.

    Raises:
        MissingExtra: it is not installed; the message says `pip install 'turnwise[extra]'`.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingExtra(
            f"{package} is not installed; run `pip install 'turnwise[{extra}]'`", name=package
        ) from error
