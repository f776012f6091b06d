"""Labels by name: the classes of a task, and the class of a row."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from service.schemas.specs import TaskSpec

from ..failures import Rejected

_DIGITS = re.compile(r"([0-9]+)")
# The class of a row whose label train lacks, where such rows count as wrong.
UNKNOWN = -1


def class_name(value: Any) -> str:
    """The name of a label. A whole number that was stored as a float is the integer: 1.0 is 1."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def label_reader(split: Any, column: str) -> Callable[[Any], str]:
    """A function that names a split's labels.

    Where the column has names of its own they are used, because numbers may differ per split.
    """
    names = getattr(split.features[column], "names", None)
    if names is None:
        return class_name
    return lambda value: str(names[value])


def natural(names: Iterable[str]) -> list[str]:
    """Names in natural order: numbers by value, others by text with the numbers within by value."""
    names = list(names)
    try:
        return sorted(names, key=lambda name: (float(name), name))
    except ValueError:
        pass
    return sorted(names, key=lambda name: [int(p) if p.isascii() and p.isdigit() else p for p in _DIGITS.split(name)])


def classes_of(task: TaskSpec, train: Any, column: str, found: Iterable[str]) -> list[str]:
    """The classes of a task: the declared ones, else the column's own names, else those ``found`` in train.

    Raises:
        Rejected: there are fewer than two, or two differ only in surrounding spaces.
    """
    if task.labels is not None:
        return list(task.labels)
    feature = train.features[column]
    classes = list(feature.names) if hasattr(feature, "names") else natural(set(found))
    if len(classes) < 2:
        raise Rejected(
            f"the training split's column {column!r} has {len(classes)} class{'es' * (len(classes) != 1)}; "
            "at least two are needed"
        )
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(_seen_as(name), name)
        if other != name:
            shown = f"{other!r} and {name!r}" if other.strip() != name.strip() or other.isascii() else ""
            if _invisible(other) or _invisible(name) or not shown:
                shown = f"{other!a} and {name!a}"
            raise Rejected(
                f"the classes {shown} of column {column!r} look the same: they differ only in {_how(other, name)}"
            )
    return classes


def _seen_as(name: str) -> str:
    """A name as a reader sees it: composed characters, no surrounding spaces, nothing invisible."""
    return "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) != "Cf").strip()


def _invisible(name: str) -> bool:
    return unicodedata.normalize("NFC", name) != name or any(unicodedata.category(c) == "Cf" for c in name)


def _how(a: str, b: str) -> str:
    return "surrounding spaces" if a.strip() == b.strip() else "their Unicode form or in invisible characters"


def in_order_of(classes: Sequence[str], outputs: Sequence[str]) -> list[str] | None:
    """The classes in the order of a model's named outputs; ``None`` if they are not the same classes.

    Names match exactly, else without regard to case. transformers' default names ``LABEL_0``, ``LABEL_1``, ... match
    the numbers.
    """
    if all(name == f"LABEL_{k}" for k, name in enumerate(outputs)):
        outputs = [str(k) for k in range(len(outputs))]
    for form in (str, str.casefold):
        mine = {form(name): name for name in classes}
        if len(mine) == len(classes) == len(outputs) and {form(name) for name in outputs} == set(mine):
            return [mine[form(name)] for name in outputs]
    return None
