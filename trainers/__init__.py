"""`turnwise.trainers`."""

if not __name__.startswith("turnwise."):
    raise ImportError("import turnwise.trainers, not trainers: run `pip install -e .` first")
