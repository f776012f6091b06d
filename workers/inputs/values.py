"""What a cell must hold, by its role in the task: checked once, before anything is tokenised."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from service.schemas.specs import TaskKind, TaskSpec, template_fields

from .bad_rows import BadRow
from .labels import class_name, label_reader

_BATCH = 1000
_LONGEST_SHOWN = 40

Problem = tuple[str, str | None]  # what is wrong, and the value if it is worth showing
Check = Callable[[Any], Problem | None]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


def text(value: Any) -> Problem | None:
    """A text that is not blank."""
    if value is None:
        return "is null", None
    if not isinstance(value, str):
        return f"is {_kind(value)} instead of text", _shown(value)
    return None if value.strip() else ("is empty", None)


def written(value: Any) -> Problem | None:
    """A text or a finite number, which is written as it stands."""
    if value is None:
        return "is null", None
    if isinstance(value, str):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"is {_kind(value)} instead of text", _shown(value)
    return None if math.isfinite(value) else ("is not finite", _shown(value))


def written_not_blank(value: Any) -> Problem | None:
    """As :func:`written`, and not blank."""
    return written(value) or (None if str(value).strip() else ("is empty", None))


def worded(value: Any) -> Problem | None:
    """A value that ``label_words`` may name: any but null, blank, lists and objects."""
    return None if isinstance(value, bool) else written_not_blank(value)


def number(value: Any) -> Problem | None:
    """A finite number, also written as text."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return ("is null" if value is None else "is empty"), None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return f"is {_kind(value)} instead of a number", _shown(value)
    try:
        # Python would read "1_000".
        found = float(value) if "_" not in str(value) else None
    except (ValueError, OverflowError):
        found = None
    if found is None:
        return "is not a number", _shown(value)
    with np.errstate(over="ignore"):
        return None if np.isfinite(np.float32(found)) else ("is not a finite number (in fp32)", _shown(value))


def label(value: Any) -> Problem | None:
    """A class: a text, an integer, or true or false."""
    if value is None:
        return "is null", None
    if isinstance(value, list | tuple | dict):
        return f"is {_kind(value)}; a row has one label", _shown(value)
    if isinstance(value, bytes):
        return "is binary; store labels as text or integers", _shown(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "is not finite", _shown(value)
    if isinstance(value, str) and not value.strip():
        return "is empty", None
    return None


def image(value: Any) -> Problem | None:
    """Anything but null and empty; decoding finds the rest."""
    return ("is null" if value is None else "is empty", None) if value is None or value == [] else None


def messages(value: Any) -> Problem | None:
    """A conversation that ends with the assistant's message, after at least one other."""
    if value is None:
        return "is null", None
    if not isinstance(value, list):
        return f"is {'text' if isinstance(value, str) else _kind(value)} instead of a list of messages", _shown(value)
    if not value:
        return "is an empty conversation", None
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return "has a message without a role", _shown(message)
        content = message.get("content")
        if not isinstance(content, str):
            return f"has a message whose content is {'null' if content is None else _kind(content)}", None
    if value[-1]["role"] != "assistant":
        return "does not end with the assistant's message, which is the training target", f"role {value[-1]['role']!r}"
    if len(value) == 1:
        return "has no message before the assistant's", None
    return None if value[-1]["content"].strip() else ("ends with an empty message", None)


_CHECKS: dict[TaskKind, dict[str, Check]] = {
    TaskKind.SEQUENCE_CLASSIFICATION: {"text": text, "text_pair": text, "label": label},
    TaskKind.SEQUENCE_REGRESSION: {"text": text, "text_pair": text, "label": number},
    TaskKind.IMAGE_CLASSIFICATION: {"image": image, "label": label},
    TaskKind.CAUSAL_LM: {"prompt": written, "completion": written_not_blank, "messages": messages},
    TaskKind.SEQ2SEQ_LM: {"text": written_not_blank, "target": written_not_blank},
}


def column_checks(task: TaskSpec, roles: dict[str, str], template: str | None) -> dict[str, Check]:
    """The check of every column that a task reads. A custom task checks its own."""
    found: dict[str, Check] = {}
    by_role = _CHECKS.get(task.kind, {})
    if template is not None and "messages" not in roles:
        found = dict.fromkeys(template_fields(template), written) if by_role else {}
    for role, column in roles.items():
        if role in by_role:
            found[column] = worded if role == "target" and task.label_words is not None else by_role[role]
    return found


def check_values(split: Any, numbers: list[int], checks: Mapping[str, Check]) -> Iterator[BadRow]:
    """The bad cells of a split, whose rows have these ``numbers``."""
    for column, check in checks.items():
        named = getattr(split.features[column], "names", None)
        for number_, value in zip(numbers, _column(split, column), strict=True):
            problem = check(value)
            if problem is None and named is not None and not 0 <= value < len(named):
                problem = "is a number without a name: the split is not labelled", _shown(value)
            if problem is not None:
                yield BadRow(number_, column, *problem)


def check_labels(split: Any, numbers: list[int], column: str, classes: Iterable[str], declared: bool) -> list[BadRow]:
    """The rows whose label is none of the classes."""
    known, name = set(classes), label_reader(split, column)
    problem = "has a label that task.labels does not name" if declared else "has a label that train lacks"
    return [
        BadRow(n, column, problem, repr(name(value)))
        for n, value in zip(numbers, _column(split, column), strict=True)
        if name(value) not in known
    ]


def check_words(split: Any, numbers: list[int], column: str, words: Collection[str]) -> list[BadRow]:
    """The rows whose target has no word in ``task.label_words``."""
    names = getattr(split.features[column], "names", None)
    return [
        BadRow(n, column, "has no word in task.label_words", repr(value))
        for n, value in zip(numbers, _column(split, column), strict=True)
        if not any(key in words for key in target_keys(value, names))
    ]


def target_keys(value: Any, names: list[str] | None) -> list[str]:
    """The keys of ``task.label_words`` under which a target may stand, in order."""
    keys = [str(value), class_name(value), str(value).lower()]
    return [*keys, names[value]] if names and isinstance(value, int) and 0 <= value < len(names) else keys


def names_in(split: Any, column: str) -> set[str]:
    """The class names that occur in a split."""
    name = label_reader(split, column)
    return {name(value) for value in _column(split, column)}


def _column(split: Any, column: str) -> Iterator[Any]:
    selected = split.select_columns([column])
    if type(selected.features[column]).__name__ == "Image":
        import datasets

        # Only whether there is one is checked here.
        selected = selected.cast_column(column, datasets.Image(decode=False))
    for batch in selected.iter(_BATCH):
        yield from batch[column]
