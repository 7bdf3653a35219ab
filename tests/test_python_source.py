"""Programs are parsed on many threads at once, and CPython's parser does not allow for that."""

import ast
import gc
import re
import sys
import threading
from pathlib import Path

import pytest

import turnwise.envs.builtin.python_source as python_source

SOURCE = Path(python_source.__file__).with_name("repair_lists.py").read_text()


class Garbage:
    """A cycle whose end lets other threads run, wherever the collector happens to find it."""

    def __init__(self):
        self.me, self.file = self, open("/dev/null")  # noqa: SIM115

    def __del__(self):
        self.file.close()


def errors_of(parse, threads=4, times=25):
    """What `parse` raises on threads that take turns as often as they can."""
    errors = []

    def work():
        for _ in range(times):
            for _ in range(20):
                Garbage()
            try:
                parse(SOURCE)
            except SystemError as error:
                errors.append(error)

    switch, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-5)
    gc.set_threshold(50, 5, 5)
    try:
        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(switch)
        gc.set_threshold(*threshold)
    return errors


def test_programs_are_parsed_on_many_threads_at_once():
    assert errors_of(python_source.parse) == []


def test_no_environment_parses_by_itself():
    folder = Path(python_source.__file__).parent.parent
    own = [
        file.name
        for file in folder.rglob("*.py")
        if file.name != "python_source.py"
        and re.search(r"\bast\.parse\(|literal_eval\(", file.read_text())
    ]
    assert own == []


@pytest.mark.parametrize("source", ["1 +", "\0", "(" * 500])
def test_what_is_no_program_raises_as_ever(source):
    for parse in (python_source.parse, ast.parse):
        with pytest.raises((SyntaxError, ValueError, MemoryError)):
            parse(source)
    with pytest.raises((SyntaxError, ValueError, MemoryError)):
        python_source.parse_expression(source)
