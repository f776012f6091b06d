"""Study files in YAML, with the line of every place in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ..domain.faults import schema_faults
from ..domain.study_spec import StudySpec
from ..errors import Fault, InvalidStudy

LARGEST_BYTES = 1_000_000


class StudyFile:
    """A study as written in a file.

    Raises:
        InvalidStudy: the file cannot be read, is not YAML, or holds no mapping.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.stat().st_size > LARGEST_BYTES:
                raise InvalidStudy(f"{path} is larger than {LARGEST_BYTES} bytes; a study is a page of text")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidStudy(f"{path} cannot be read: {error}") from error
        try:
            self._root = yaml.compose(text, Loader=yaml.SafeLoader)
            self.content: dict[str, Any] = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            place = f" at line {mark.line + 1}" if mark else ""
            raise InvalidStudy(f"{path} is not YAML{place}: {getattr(error, 'problem', error)}") from error
        if not isinstance(self.content, dict):
            raise InvalidStudy(f"{path} holds no study; see examples/ for one")
        try:
            json.dumps(self.content, allow_nan=False)
        except (TypeError, ValueError) as error:
            # Dates, NaN, and lists that contain themselves are YAML but cannot be sent.
            raise InvalidStudy(f"{path} holds a value that JSON has no form for: {error}") from error

    def check(self) -> None:
        """Validate the file without a server.

        Raises:
            InvalidStudy: with every fault that does not need the model, the data or the catalog.
        """
        try:
            StudySpec.model_validate(self.content)
        except ValidationError as error:
            faults = schema_faults(error)
            raise InvalidStudy(f"the study has {len(faults)} fault{'s' * (len(faults) != 1)}", faults) from None

    def line(self, pointer: str) -> int | None:
        """The line (from 1) of a place; for a place that is missing, that of the closest one around it."""
        node = self._root
        line = None
        for part in pointer.removeprefix("#").strip("/").split("/"):
            if isinstance(node, yaml.MappingNode):
                found = next(((k, v) for k, v in node.value if k.value == part), None)
                if found is None:
                    break
                line, node = found[0].start_mark.line + 1, found[1]
            elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
                node = node.value[int(part)]
                line = node.start_mark.line + 1
            else:
                break
        return line

    def describe(self, fault: Fault) -> str:
        """A fault with its place in this file."""
        line = self.line(fault.pointer)
        place = f"{self.path}:{line}" if line is not None else str(self.path)
        return f"{place}: {fault.pointer.removeprefix('#/').replace('/', '.') or 'study'}: {fault.detail}"
