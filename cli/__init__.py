"""`turnwise.cli`."""

if not __name__.startswith("turnwise."):
    raise ImportError("import turnwise.cli, not cli: run `pip install -e .` first")
