"""Where tokens are sampled and scored: one engine per file behind one protocol (`base`)."""
