"""Environments of other libraries as environments of turnwise; one library per file."""
