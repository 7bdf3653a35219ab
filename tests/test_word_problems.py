"""Laws of Calculator and PythonTool: questions have one right answer, and only it is paid."""

import contextlib
import math
from fractions import Fraction

import pytest
from boxes import need_bubblewrap
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from turnwise.envs.builtin import python_tool
from turnwise.envs.builtin.arithmetic import MAX_CHARS, CannotCalculate, calculate
from turnwise.envs.builtin.calculator import MAX_STEPS, Calculator, task_problem
from turnwise.envs.builtin.python_problems import KINDS
from turnwise.envs.builtin.python_tool import Puzzle, PythonTool
from turnwise.envs.names import UnknownName

HARDEST = {"steps": (1, MAX_STEPS), "digits": 4, "asides": 4}


def to_the_end(env):
    """Let the expert play on; return the last info."""
    done, info = False, {}
    while not done:
        _, _, terminated, truncated, info = env.step(env.expert())
        done = terminated or truncated
    return info


@pytest.mark.parametrize("split", Calculator.splits)
@pytest.mark.parametrize("knobs", [{}, HARDEST])
def test_the_expert_answers_every_question(split, knobs):
    env = Calculator(**knobs)
    for task in env.tasks(split)[:200]:
        env.reset(seed=0, options={"task": task})
        info = to_the_end(env)
        assert info["success"] and len(env.episode.actions) == 2, task


def retold(text):
    """Compute the answer from the story, sentence by sentence, without its expression."""
    total = 0
    for line in text.split(". "):
        numbers = [int(word.strip(".,")) for word in line.split() if word.strip(".,").isdigit()]
        if " has " in line:
            total = numbers[0]
        elif "arrive" in line:
            total += numbers[0] * numbers[1]
        elif "sold" in line:
            total -= numbers[0]
        elif "times" in line:
            total *= numbers[0]
        elif "break" in line:
            total = (total - numbers[0]) // numbers[1]
    return total


def test_the_answer_is_what_the_story_says_and_stands_nowhere_in_it():
    for task in Calculator(**HARDEST).tasks("test")[:200]:
        problem = task_problem(task)
        assert problem.answer == retold(problem.text) > 0
        assert str(problem.answer) not in problem.text.replace(".", " ").replace(",", " ").split()


numbers = st.integers(0, 10**6).map(str) | st.decimals(0, 999, places=3).map(str)
expressions = st.recursive(
    numbers,
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "%", "/"]), inner).map(
        lambda parts: "({} {} {})".format(*parts)
    ),
    max_leaves=6,
)


@given(expressions)
def test_arithmetic_is_exact(expression):
    assume("//" not in expression or " / " not in expression)  # Fraction // Fraction is an int
    spelled = expression.replace("//", "÷").replace("/", "|")
    try:
        value = calculate(expression)
    except CannotCalculate:
        return
    words = spelled.replace("÷", "//").replace("|", "/").split()
    exact = " ".join(_fraction(word) for word in words)
    assert value == eval(exact, {"Fraction": Fraction})


def _fraction(word):
    bare = word.strip("()")
    return word.replace(bare, f"Fraction('{bare}')") if bare and bare[0].isdigit() else word


@pytest.mark.parametrize(
    "expression",
    [
        *("", "x", "1 +", "2 ** 9", "__import__('os')", "abs(1)", "[1]", "1 if 1 else 2", "True"),
        *("1 / 0", "5 % 0", "9" * 150 + "*" + "9" * 40, "1 < 2", "(lambda: 1)()", "1e999", "'a'*9"),
        *("(" * 90 + "1" + ")" * 90, "1" * (MAX_CHARS + 1), "\x00", "1;2", "f'{1}'", "1j"),
    ],
)
def test_what_is_no_arithmetic_or_too_large_is_refused_and_answered(expression):
    with contextlib.suppress(CannotCalculate):
        assert math.isfinite(calculate(expression))  # deep brackets may be fine
    env = Calculator()
    env.reset(seed=0)
    observation, reward, *_ = env.step(env.call_text("calculate", expression=expression))
    assert reward == 0 and len(observation) < 400


def test_only_the_right_number_is_paid():
    for wrong in (0, -1, 1):
        env = Calculator()
        env.reset(seed=4)
        _, reward, ended, _, _ = env.step(env.call_text("answer", value=env.problem.answer + wrong))
        assert ended and reward == float(wrong == 0)


@pytest.mark.parametrize("knobs", [{"steps": 0}, {"steps": (3, 2)}, {"digits": 5}, {"asides": -1}])
def test_a_knob_out_of_range_is_refused_by_name(knobs):
    with pytest.raises(ValueError, match=f"{next(iter(knobs))} must lie in"):
        Calculator(**knobs)


def test_an_unknown_kind_of_question_is_refused_and_the_nearest_named():
    with pytest.raises(UnknownName, match="palindromes"):
        PythonTool(kinds=["palindrome"])


@given(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=3), st.integers(0, 9999))
@settings(max_examples=60, deadline=None)
def test_the_code_of_a_question_prints_its_answer_whoever_runs_it(kinds, index):
    problem = python_tool.task_problem(Puzzle(kind="+".join(kinds), index=index))
    printed = []
    exec(problem.code, {"print": printed.append})
    assert printed == [problem.answer] and problem.answer > 5 * len(kinds)


def test_numbers_of_terms_take_turns_and_every_kind_is_met_at_each():
    tasks = PythonTool(terms=(1, 3)).tasks("train")[: 3 * len(KINDS)]
    met = {(len(task.kinds), task.kinds[0]) for task in tasks}
    assert met == {(terms, kind) for terms in (1, 2, 3) for kind in KINDS}


@pytest.mark.parametrize("terms", [0, 4, (3, 2), (1, 9)])
def test_a_number_of_terms_out_of_range_is_refused(terms):
    with pytest.raises(ValueError, match=r"terms must lie in 1\.\.3"):
        PythonTool(terms=terms)
    with pytest.raises(ValueError, match="terms"):
        Puzzle(kind="digit_sum+" * 3 + "digit_sum")


def test_the_expert_answers_every_kind_in_a_box_also_after_wandering():
    need_bubblewrap()
    env = PythonTool(terms=(1, 2))
    try:
        for task in env.tasks("dev")[: 2 * len(KINDS)]:
            env.reset(seed=0, options={"task": task})
            env.step(env.call_text("python", code="x = 1; 1 / 0"))
            assert to_the_end(env)["success"], task
            assert env.episode.n_turns == 3
    finally:
        env.close()
