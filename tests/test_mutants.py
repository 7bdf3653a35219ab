"""The table of faults is not out of date; whether they are found is run on demand."""

from __future__ import annotations

import ast

import pytest
from mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.test)
def test_a_fault_fits_its_file_once_and_names_a_test_that_is_there(mutant: Mutant):
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.old) == 1 and mutant.new != mutant.old
    ast.parse(text.replace(mutant.old, mutant.new))
    file, words = mutant.test.split()
    assert words in (ROOT / "tests" / file).read_text()
