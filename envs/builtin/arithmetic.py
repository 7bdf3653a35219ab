"""A calculator that cannot do anything else: `+ - * / // %`, brackets and numbers."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from fractions import Fraction

from turnwise.envs.builtin.python_source import parse_expression

MAX_CHARS = 200
MAX_BITS = 256
"""Of a numerator or denominator: about 77 digits."""
OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
    ast.Mod: operator.mod,
}


class CannotCalculate(ValueError):
    """It is no arithmetic, or too large; the message says what."""


def calculate(expression: str) -> Fraction:
    """Return the exact value of `expression`.

    Raises:
        CannotCalculate: it is too long, no arithmetic, divides by zero or grows too large.
    """
    if len(expression) > MAX_CHARS:
        raise CannotCalculate(f"at most {MAX_CHARS} characters, got {len(expression)}")
    try:
        return _value(parse_expression(expression.strip()))
    except ZeroDivisionError:
        raise CannotCalculate("division by zero") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, CannotCalculate):
            raise
        raise CannotCalculate("write numbers, brackets and + - * / // %") from None


def _value(node: ast.expr) -> Fraction:
    """Evaluate one node; anything that is not arithmetic is refused."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(Fraction(str(number)))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATIONS:
            return _bounded(OPERATIONS[type(op)](_value(left), _value(right)))
    raise CannotCalculate("write numbers, brackets and + - * / // %")


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise CannotCalculate("the number grows too large")
    return value


def shown(value: Fraction) -> str:
    """Return the value as an agent reads it: exact, as an integer or a fraction."""
    return str(value)
