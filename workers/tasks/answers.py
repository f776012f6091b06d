"""Extract the answer from a generated text by a named extractor."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from service.patterns import compile_pattern
from service.schemas.specs import GenerationSpec

from ..failures import Rejected

_NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?"


def extract(text: str, generation: GenerationSpec) -> str | None:
    """The answer in a text; ``None`` if it has none.

    ``text``: all of it; ``gsm8k``: the number after ``####``; ``last_number``: the last number; ``regex``: the first
    group of the pattern's last match (the whole match, if it has no group). Numbers lose separators and trailing zeros.
    """
    if generation.extractor == "text":
        return text.strip()
    if generation.extractor == "regex":
        assert generation.pattern is not None
        matches = list(_pattern(generation.pattern).finditer(text))
        if not matches:
            return None
        found = matches[-1]
        return ((found.group(1) if found.re.groups else found.group(0)) or "").strip()
    pattern = rf"####\s*({_NUMBER})" if generation.extractor == "gsm8k" else rf"({_NUMBER})"
    numbers = re.findall(pattern, text)
    return _normal(numbers[-1]) if numbers else None


@lru_cache(8)
def _pattern(text: str) -> Any:
    try:
        return compile_pattern(text)
    except ValueError as error:
        raise Rejected(f"task.generation.pattern: {error}") from error


def _normal(number: str) -> str:
    plain = number.replace(",", "").replace("$", "")
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    return plain
