"""`turnwise.agents`."""

if not __name__.startswith("turnwise."):
    raise ImportError("import turnwise.agents, not agents: run `pip install -e .` first")
