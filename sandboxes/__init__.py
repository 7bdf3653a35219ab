"""`turnwise.sandboxes`: where commands run. `open_sandbox()` returns a box that isolates."""

if not __name__.startswith("turnwise."):
    raise ImportError("import turnwise.sandboxes, not sandboxes: run `pip install -e .` first")

_HOMES = {
    "base": (
        "ExecResult Isolation Limits NetPolicy NoSafeSandbox ProtocolError Sandbox SandboxDied"
        " SandboxError SandboxSpec StartFailed Unsupported"
    ),
    "check": "LawResult SandboxReport check_sandbox",
    "open": "BACKENDS open_sandbox",
    "pool": "PoolStats WarmPool warm_pool",
    "probe": "Verdict probe_isolation",
    "snapshot": "Snapshot",
    "room": "Batch Room",
    "shared": "shared_sandbox",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> object:
    """Import a public name from the file that has it, on first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
