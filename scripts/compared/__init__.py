"""The comparisons of scripts/compare_methods.py."""
