"""Filters of trials by expression."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import InvalidRequest
from service.results.trial_filter import LONGEST, parse
from service.results.trial_rows import TrialRows

TRIAL: dict[str, Any] = {
    "number": 4,
    "state": "completed",
    "phase": "search",
    "r1": 2,
    "r2": 8,
    "attention.r1": 4,
    "alpha": 16.0,
    "learning_rate": 1e-3,
    "init_weights": "kaiming",
    "accuracy": 0.93,
    "self-attn.r1": 2,
    "eval/loss": 0.4,
    "failure": None,
}
NAMES = [*TRIAL, "loss"]


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("accuracy > 0.9 and r2 = 8 and state = completed", True),
        ("accuracy > 0.95 or r1 == 2", True),
        ("0.8 < accuracy < 0.95", True),
        ("0.8 < accuracy < 0.9", False),
        ("8 = r2", True),
        ("not (r1 = 2)", False),
        ("state in (completed, pruned)", True),
        ("state not in (completed, pruned)", False),
        ("r1 in (1, 4)", False),
        ("r1 in 2", True),
        ("attention.r1 >= 4", True),
        ("learning_rate <= 1e-3", True),
        ("init_weights = 'kaiming' and init_weights != zero", True),
        ('init_weights in ("kaiming", "a=b")', True),
        ("init_weights = 'a = b'", False),
        ("r2 > r1", True),
        ("alpha=16", True),
        ("number != 4", False),
        ("r1 = 2 and\n  r2 = 8", True),
        ("learning_rate > -1", True),
        # What a trial does not have compares as false, either way.
        ("loss < 1", False),
        ("loss != 1", False),
        ("loss not in (1, 2)", False),
        ("not loss < 1", True),
        ("failure = out_of_memory", False),
        ("failure != out_of_memory", False),
        ("failure not in (out_of_memory, error)", False),
        # A name that is no word of the grammar stands in quotes.
        ('"self-attn.r1" = 2 and 0.3 < "eval/loss" < 0.5', True),
        ('"self-attn.r1" in (4, 8)', False),
        ("init_weights in (kaiming, 3)", True),
        ("alpha in (16, 32)", True),
        # Words and numbers are in no order.
        ("init_weights > 3", False),
        ("r1 = two", False),
    ],
)
def test_an_expression_says_which_trials_fit(text: str, fits: bool) -> None:
    assert parse(text, NAMES)(TRIAL) is fits


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("acuracy > 0.9", "they have accuracy"),
        ("accuracy > 0.9 and foo = bar", "no 'foo'"),
        ("state = complted", "'complted' is no state; there are cancelled, completed"),
        ("phase = searching", "is no phase"),
        ("state in (completed, stopped)", "'stopped' is no state"),
        ("r1", "compare it with a value"),
        ("r1 =", "cannot be read"),
        ("", "cannot be read"),
        ("r1 = 010", "cannot be read"),
        ("r1 = 2; r2 = 8", "cannot be read"),
        ("(r1 = 2", "cannot be read"),
        ("'unclosed", "cannot be read"),
        ("r1 + 2 > 3", "'r1 + 2' is no value"),
        ("1 < 2", "one side of a comparison is the name"),
        ("r1 is 2", "write ="),
        ("__import__('os').system('id') = 1", "is no value"),
        ("r1 = (lambda: 1)()", "is no value"),
        ("r1.__class__ = 1", "trials of this study have no 'r1.__class__'"),
        ("r1 = f'{r2}'", "is no value"),
        ("-r1 = 2", "is no value"),
        ("r1 = 2" + " " * LONGEST, f"at most {LONGEST}"),
        ("\x00", "cannot be read"),
        ("-" * 480 + "1 = r1", "cannot be read"),
        ("~" * 480 + "1 = r1", "cannot be read"),
        ("r1 = " + "-" * 480 + "1", "cannot be read"),
        ("state in (completed, 'stopped', paused)", "'paused' is no state"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_would_be_right(text: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(text, NAMES)
    (fault,) = caught.value.faults
    assert fault.pointer == "#/where"
    assert words in fault.detail
    assert len(fault.detail) < 400


def test_deeply_nested_text_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        parse("(" * 245 + "r1=2" + ")" * 245, NAMES)
    assert parse("not " * 60 + "r1=2", NAMES)(TRIAL) is True


def test_rows_of_many_filters_are_not_kept_for_ever() -> None:
    rows = TrialRows([{"number": n} for n in range(20)], frozenset({"number"}))
    for n in range(20):
        assert rows.where(f"number = {n}") == [{"number": n}]
    assert rows.where("number = 19") is rows.where("number = 19")
    assert len(rows._fitting) <= 8
    assert rows.where("  ") is rows.rows
