"""Filters of trials by expression: ``accuracy > 0.9 and r2 = 8 and state in (completed, pruned)``.

    expression := comparison | not expression | expression and expression | expression or expression | (expression)
    comparison := value (= | == | != | < | <= | > | >=) value [...] | name [not] in (value, ...)

A value is a number, a word, text in quotes, or the name of something that a trial has. A comparison with something that
a trial does not have is false. The text is parsed with Python's grammar, of which only this much is taken.
"""

from __future__ import annotations

import ast
import difflib
import io
import operator
import tokenize
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..domain.states import TrialPhase, TrialState
from ..errors import Fault, InvalidRequest

LONGEST = 500
_MOST_SAID = 60
Test = Callable[[Mapping[str, Any]], bool]
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_WORDS = {"state": frozenset(TrialState), "phase": frozenset(TrialPhase)}
_MISSING = object()


@dataclass(frozen=True, slots=True)
class _Name:
    """Something that a trial has, or a word."""

    text: str


def parse(text: str, names: Iterable[str]) -> Test:
    """The test that an expression means, for trials given as mappings from ``names`` to values.

    Raises:
        InvalidRequest: it cannot be read, or names what trials of the study do not have.
    """
    known = set(names)
    if len(text) > LONGEST:
        raise _refused(f"the filter has {len(text)} characters; at most {LONGEST} are read")
    try:
        tree = ast.parse(_with_double_signs(text), mode="eval")
        return _expression(tree.body, known)
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError):
        example = "accuracy > 0.9 and r2 = 8 and state = completed"
        raise _refused(f"{_short(text)!r} cannot be read; write comparisons such as {example}") from None


def _refused(detail: str) -> InvalidRequest:
    return InvalidRequest(f"the filter is not valid: {detail}", [Fault("#/where", detail)])


def _short(text: str) -> str:
    return text if len(text) <= _MOST_SAID else f"{text[:_MOST_SAID]}..."


def _said(node: ast.expr) -> str:
    return repr(_short(ast.unparse(node)))


def _with_double_signs(text: str) -> str:
    """The text with ``==`` for ``=``, except in quotes, on one line."""
    tokens = tokenize.generate_tokens(io.StringIO(" ".join(text.split())).readline)
    return " ".join("==" if token.string == "=" else token.string for token in tokens).strip()


def _expression(node: ast.expr, known: set[str]) -> Test:
    match node:
        case ast.BoolOp(op, values):
            tests = [_expression(value, known) for value in values]
            if isinstance(op, ast.And):
                return lambda trial: all(test(trial) for test in tests)
            return lambda trial: any(test(trial) for test in tests)
        case ast.UnaryOp(ast.Not(), operand):
            inner = _expression(operand, known)
            return lambda trial: not inner(trial)
        case ast.Compare(left, ops, comparators):
            sides = [left, *comparators]
            pairs = [_comparison(sides[k], op, sides[k + 1], known) for k, op in enumerate(ops)]
            return lambda trial: all(test(trial) for test in pairs)
    raise _refused(f"{_said(node)} is no comparison; compare it with a value, such as r2 = 8")


def _comparison(left: ast.expr, op: ast.cmpop, right: ast.expr, known: set[str]) -> Test:
    if isinstance(op, ast.In | ast.NotIn):
        if not isinstance(right, ast.Tuple | ast.List):
            right = ast.Tuple([right], ast.Load())
        return _membership(
            left, [_value(element, known) for element in right.elts], known, wanted=isinstance(op, ast.In)
        )
    first, second = _value(left, known), _value(right, known)
    if not any(isinstance(side, _Name) for side in (first, second)):
        raise _refused(f"one side of a comparison is the name of something that a trial has; {_said(left)} is none")
    if not any(isinstance(side, _Name) and side.text in known for side in (first, second)):
        _name(left if isinstance(first, _Name) else right, known)
    for a, b in ((first, second), (second, first)):
        if isinstance(a, _Name) and a.text in known and isinstance(b, _Name) and b.text not in known:
            _require_word(a.text, b.text)
    compare = _COMPARISONS.get(type(op))
    if compare is None:
        raise _refused("'is' compares nothing here; write =")
    get_first, get_second = _getter(first, known), _getter(second, known)

    def test(trial: Mapping[str, Any]) -> bool:
        a, b = get_first(trial), get_second(trial)
        if a is _MISSING or b is _MISSING or a is None or b is None:
            return False
        if isinstance(a, str) != isinstance(b, str):
            a, b = str(a), str(b)
            return compare(a, b) if compare in (operator.eq, operator.ne) else False
        return compare(a, b)

    return test


def _membership(left: ast.expr, values: list[Any], known: set[str], *, wanted: bool) -> Test:
    """Whether a value is one of a list of constants."""
    name = _name(left, known)
    words: set[str] = set()
    numbers: set[float] = set()
    for value in values:
        if isinstance(value, _Name):
            _require_word(name, value.text)
            words.add(value.text)
        elif isinstance(value, str):
            words.add(value)
        else:
            numbers.add(value)
    words |= {str(number) for number in numbers}

    def test(trial: Mapping[str, Any]) -> bool:
        found = trial.get(name)
        if found is None:
            return False
        listed = found in words if isinstance(found, str) else found in numbers or str(found) in words
        return listed is wanted

    return test


def _getter(side: Any, known: set[str]) -> Callable[[Mapping[str, Any]], Any]:
    if isinstance(side, _Name) and side.text in known:
        name = side.text
        return lambda trial: trial.get(name, _MISSING)
    value = side.text if isinstance(side, _Name) else side
    return lambda trial: value


def _name(node: ast.expr, known: set[str]) -> str:
    value = _value(node, known)
    if isinstance(value, _Name) and value.text in known:
        return value.text
    shown = value.text if isinstance(value, _Name) else _short(ast.unparse(node))
    near = difflib.get_close_matches(str(shown), known, 3) or sorted(known)
    raise _refused(f"trials of this study have no {shown!r}; they have {', '.join(near)}")


def _require_word(name: str, word: str) -> None:
    if name in _WORDS and word not in _WORDS[name]:
        raise _refused(f"{word!r} is no {name}; there are {', '.join(sorted(_WORDS[name]))}")


def _value(node: ast.expr, known: set[str]) -> Any:
    match node:
        # A name that is no word of the grammar, such as "self-attn.r1", stands in quotes.
        case ast.Constant(str(text)) if text in known:
            return _Name(text)
        case ast.Constant(value) if isinstance(value, int | float | str) and not isinstance(value, bool):
            return value
        case ast.Constant(value) if value is None or isinstance(value, bool):
            return _Name(str(value))
        case ast.UnaryOp(ast.USub(), ast.Constant(value)) if isinstance(value, int | float):
            return -value
        case ast.Name(text):
            return _Name(text)
        case ast.Attribute(value, attribute):
            inner = _value(value, known)
            if isinstance(inner, _Name):
                return _Name(f"{inner.text}.{attribute}")
    raise _refused(f"{_said(node)} is no value; give a name, a number, or text in quotes")
