"""Formulas as text: printed as they stand, parsed once, evaluated on Python integers.

A formula is one Python expression over symbols: ``2*C if affine else 0``, ``C % groups == 0``. It may use numbers,
``True``/``False``/``None``, ``+ - * / // % **``, comparisons (also ``is None``), ``and``/``or``/``not``,
``x if c else y``, ``min``, ``max``, ``sqrt``, ``log``, ``gcd``, ``axis(k, 0)``, the entry of an option that has one per
axis, ``inside(H, k, stride, padding, dilation)``, the elements of all windows along an axis that are no padding,
``meeting(…)`` of the same, the taps that see any, ``batch_norm(N, C, S)`` and ``batch_norm_backward(N, C, S)``, the
operations of a batch normalization inside, and of a list of dilation rates ``entries(rates)`` and
``is_covered(rates, k)``; nothing else, so that text from a card cannot run code.
"""

from __future__ import annotations

import ast
import keyword
import math
import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from layers import dilation, dimensions

Value = Any
Symbols = Mapping[str, Value]


class FormulaError(ValueError):
    """A formula that does not parse, uses a forbidden construct, or names an unknown symbol."""


def _exact_divide(left: Value, right: Value) -> Value:
    """Divide, staying in the integers when the quotient is one (sizes must not turn into floats)."""
    if isinstance(left, int) and isinstance(right, int) and right != 0 and left % right == 0:
        return left // right
    return left / right


def _power(base: Value, exponent: Value) -> Value:
    """Raise to a power that is not so large that computing it would take forever."""
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > _MOST_BITS:
        raise OverflowError(f"{base}**{exponent} is too large")
    return base**exponent


_MOST_BITS = 4096  # of a power
_BINARY: dict[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _exact_divide,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Value, Value], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_UNARY: dict[type[ast.unaryop], Callable[[Value], Value]] = {ast.USub: operator.neg, ast.Not: operator.not_}
_CALLS: dict[str, Callable[..., Value]] = {
    "min": min,
    "max": max,
    "sqrt": math.sqrt,
    "log": math.log,
    "gcd": math.gcd,
    "axis": operator.getitem,
    "inside": dimensions.inside,
    "meeting": dimensions.meeting,
    "batch_norm": dimensions.batch_norm,
    "batch_norm_backward": dimensions.batch_norm_backward,
    "entries": dilation.entries,
    "is_covered": dilation.is_covered,
}


@cache
def parse(text: str) -> ast.expr:
    """Parse ``text``, refusing every construct that is not in the language."""
    return _parsed(text)[0]


@cache
def symbols(text: str) -> frozenset[str]:
    """Return the names that ``text`` needs to be evaluated."""
    return frozenset(_parsed(text)[1])


@cache
def _parsed(text: str) -> tuple[ast.expr, list[str]]:
    """Return the tree of ``text`` and its names. Every command reads hundreds of formulas: `ast.walk` is too slow."""
    if text.isascii() and text.isidentifier() and not keyword.iskeyword(text):  # most are but a name
        return ast.Name(text, ast.Load()), [text]
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise FormulaError(f"formula {text!r} does not parse: {error.msg}") from error
    names: list[str] = []
    left = [tree]
    while left:
        match left.pop():
            case ast.Constant():
                pass
            case ast.Name(id=name):
                names.append(name)
            case ast.BinOp(left=one, op=op, right=other) if type(op) in _BINARY:
                left += (one, other)
            case ast.UnaryOp(op=op, operand=one) if type(op) in _UNARY:
                left.append(one)
            case ast.IfExp(test=test, body=one, orelse=other):
                left += (test, one, other)
            case ast.BoolOp(values=parts):
                left += parts
            case ast.Compare(left=one, ops=ops, comparators=rest) if all(type(op) in _COMPARE for op in ops):
                left += (one, *rest)
            case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]) if name in _CALLS:
                left += parts
            case ast.Call():
                raise FormulaError(f"formula {text!r} calls something other than {', '.join(_CALLS)}")
            case node:
                raise FormulaError(f"formula {text!r} uses {_foreign(node)}")
    return tree, names


def _foreign(node: ast.expr) -> str:
    """Say what of ``node`` is not in the language: its operator, or all of it."""
    parts = getattr(node, "ops", [getattr(node, "op", node)])
    name = next(type(part).__name__ for part in parts if type(part) not in _COMPARE)
    return f"{name}, which formulas do not have{': write a power as **' if name == 'BitXor' else ''}"


def evaluate(text: str, values: Symbols) -> Value:
    """Evaluate ``text``; raises FormulaError when a symbol is missing, or it comes to no finite value."""
    try:
        value = _evaluate(parse(text), values, text)
    except FormulaError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise FormulaError(f"formula {text!r} cannot be evaluated: {error}") from error
    if isinstance(value, float) and not math.isfinite(value):
        raise FormulaError(f"formula {text!r} comes to {value}")
    return value


def _evaluate(node: ast.expr, values: Symbols, text: str) -> Value:
    def ev(child: ast.expr) -> Value:
        return _evaluate(child, values, text)

    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            if name not in values:
                raise FormulaError(f"formula {text!r} needs {name}, which is not known here")
            return values[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](ev(left), ev(right))
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](ev(operand))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return ev(body) if ev(test) else ev(orelse)
        case ast.BoolOp(op=op, values=parts):
            return all(map(ev, parts)) if isinstance(op, ast.And) else any(map(ev, parts))
        case ast.Call(func=ast.Name(id=name), args=args):
            return _CALLS[name](*map(ev, args))
        case ast.Compare(left=left, ops=ops, comparators=rest):
            sides = [ev(left), *map(ev, rest)]
            return all(_COMPARE[type(op)](a, b) for op, a, b in zip(ops, sides, sides[1:], strict=False))
    raise FormulaError(f"formula {text!r} cannot be evaluated")


def pretty(text: str) -> str:
    """Return ``text`` as people write it: ``2·C`` for ``2*C``."""
    return text.replace("**", "^").replace("*", "·")
