"""Laws of the mutator: each kind makes its bug, in place, and nothing else changes."""

import inspect

import pytest

from turnwise.envs.builtin import mutate_kinds
from turnwise.envs.builtin.mutate import Mutation, apply, compiles, mutations
from turnwise.envs.builtin.mutate_kinds import KINDS


def block(*lines):
    return "".join(f"{line}\n" for line in lines)


EXAMPLES = [
    ("compare", "return a < 3", "return a <= 3"),
    ("compare", "return 1 in a", "return 1 not in a"),
    ("arithmetic", "return (a + 1) * 2", "return (a + 1) + 2"),
    ("arithmetic", "a += b", "a -= b"),
    ("logic", "return a and b", "return a or b"),
    ("negation", "return not a", "return a"),
    ("negation", "if a: return 1", "if not a: return 1"),
    ("constant", "return 7", "return 8"),
    ("constant", "return True", "return False"),
    ("arguments", "return g(a, b)", "return g(b, a)"),
    ("statement", "for c in a: a.pop()", "for c in a: pass"),
    ("variable", "return a", "return b"),
    ("boundary", "return a[1:b]", "return a[1:b - 1]"),
    ("twin", "return min(a)", "return max(a)"),
    ("twin", "return a.lstrip()", "return a.rstrip()"),
]


def mutants(source, *kinds):
    return [apply(source, [mutation]) for mutation in mutations(source, kinds or tuple(KINDS))]


@pytest.mark.parametrize(("kind", "source", "bug"), EXAMPLES)
def test_each_kind_makes_its_bug(kind, source, bug):
    head = "def f(a, b):"
    assert block(head, f"    {bug}") in mutants(block(head, f"    {source}"), kind)


def test_a_statement_of_several_goes_with_its_line():
    source = block("def f(a):", "    a.pop()", "    return a")
    assert mutants(source, "statement") == [block("def f(a):", "    return a")]


def test_every_kind_has_an_example():
    assert {kind for kind, _, _ in EXAMPLES} == set(KINDS)


@pytest.mark.parametrize(
    "source",
    [
        'def f():\n    """Return 1 < 2."""\n    return x\n',
        "def f(a: list[1]) -> 2:\n    return x\n",
        "@g(1)\ndef f():\n    return x\n",
        'def f(a):\n    return f"{a + 1}"\n',
        'if __name__ == "__main__":\n    run(1)\n',
        "__version__ = 1\n",
        "import a\nfrom b import c\n",
    ],
)
def test_what_is_not_code_is_left_alone(source):
    assert mutants(source) == []


def test_letters_of_several_bytes_do_not_move_a_change():
    source = 'def f(a):\n    é = "ééé"; return é + a\n'
    assert 'def f(a):\n    é = "ééé"; return é - a\n' in mutants(source, "arithmetic")


def test_a_change_keeps_comments_and_layout_and_names_its_line_and_function():
    source = "class A:\n    def f(self, a):  # why\n        return (a\n                < 3)  # so\n"
    (first, _) = mutations(source, ("compare",))
    assert (first.function, first.line) == ("A.f", 4)
    assert apply(source, [first]) == source.replace("<", "<=")


def test_two_changes_of_one_place_are_refused_and_of_two_places_made():
    source = "def f(a):\n    return a < 1 < a\n"
    one, two = Mutation("x", 22, 23, "2", 2, "f"), Mutation("x", 26, 27, "==", 2, "f")
    assert apply(source, [two, one]).count("2") == 1
    with pytest.raises(ValueError, match="overlap at line 2"):
        apply(source, [Mutation("x", 20, 23, "", 2, "f"), one])


def test_mutations_follow_from_the_text_and_most_of_them_compile():
    source = inspect.getsource(mutate_kinds)
    found = mutations(source)
    assert found == mutations(source) and len(found) > 50
    assert sum(compiles(apply(source, [one])) for one in found[:100]) >= 95
