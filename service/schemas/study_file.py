"""Study files in YAML 1.2, with the line of every place in them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode
from ruamel.yaml.tokens import AliasToken, AnchorToken

from ..domain.faults import schema_faults
from ..domain.group_spec import expand, is_group
from ..domain.space_faults import space_faults
from ..domain.study_spec import StudySpec
from ..errors import Fault, InvalidStudy

LARGEST_BYTES = 1_000_000
LONGEST_TEXT = 40_000


class _Constructor(SafeConstructor):
    """Takes dates as text: a study has none, but its name may look like one."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def _yaml() -> YAML:
    """A loader of YAML 1.2: ``1e-3`` is a number, ``no`` and ``1:30`` are text, and ``010`` is ten."""
    loader = YAML(typ="safe", pure=True)
    loader.Constructor = _Constructor
    return loader


class StudyFile:
    """A study, or a group of them, as written in a file, or as text under a name. Text is from others: no aliases.

    Raises:
        InvalidStudy: the file cannot be read, is not YAML, or holds no mapping.
    """

    def __init__(self, path: Path, text: str | None = None) -> None:
        self.path = path
        if text is None:
            text = _read(path)
        else:
            _require_plain(text)
        try:
            self._root: Node | None = _yaml().compose(text)
            self.content: dict[str, Any] = _yaml().load(text)
        except (YAMLError, RecursionError, ValueError) as error:
            mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
            place = f" at line {mark.line + 1}" if mark else ""
            problem = error.problem if isinstance(error, MarkedYAMLError) else error
            hint = "; quote a value that begins with a special character" if _is_unquoted(error) else ""
            raise InvalidStudy(f"{path} is not YAML{place}: {problem}{hint}") from error
        if isinstance(self.content, dict) and "report" in self.content and isinstance(self.content.get("study"), dict):
            # A report carries the study that it is about.
            self.content = self.content["study"]
            self._root = _member(self._root, "study")
        if not isinstance(self.content, dict):
            raise InvalidStudy(f"{path} holds no study; see examples/ for one")
        try:
            json.dumps(self.content, allow_nan=False)
        except (TypeError, ValueError) as error:
            # Dates, NaN, and lists that contain themselves are YAML but cannot be sent.
            raise InvalidStudy(f"{path} holds a value that JSON has no form for: {error}") from error

    @property
    def is_group(self) -> bool:
        """Whether the file describes several studies."""
        return is_group(self.content)

    def check(self) -> None:
        """Validate the file without a server.

        Raises:
            InvalidStudy: with every fault that does not need the model, the data or the catalog.
        """
        if self.is_group:
            _, members = expand(self.content)
            faults = list(dict.fromkeys(m.located(fault) for m in members for fault in _faults(m.body)))
        else:
            faults = _faults(self.content)
        if faults:
            faults = [self._with_hint(fault) for fault in faults]
            raise InvalidStudy(f"the study has {len(faults)} fault{'s' * (len(faults) != 1)}", faults)

    def _with_hint(self, fault: Fault) -> Fault:
        if fault.detail != "Input should be a valid string":
            return fault
        return Fault(fault.pointer, f"{fault.detail}; quote it in the file if it is meant as text")

    def line(self, pointer: str) -> int | None:
        """The line (from 1) of a place; for a place that is missing, that of the closest one around it."""
        node: Any = self._root
        line: int | None = None
        for part in pointer.removeprefix("#").strip("/").split("/"):
            if isinstance(node, MappingNode):
                found = next(((k, v) for k, v in node.value if k.value == part), None)
                if found is None:
                    break
                line, node = found[0].start_mark.line + 1, found[1]
            elif isinstance(node, SequenceNode) and part.isdigit() and int(part) < len(node.value):
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


def _require_plain(text: str) -> None:
    """Check that a text is no longer than a study may be, and repeats nothing by name: that can grow without bound.

    Raises:
        InvalidStudy: it is, or does.
    """
    if len(text) > LONGEST_TEXT:
        raise InvalidStudy(f"the text has more than {LONGEST_TEXT:,} characters; a study is a page of text")
    try:
        named = [t for t in _yaml().scan(text) if isinstance(t, AliasToken | AnchorToken)]
    except (YAMLError, RecursionError, ValueError):
        return  # what is wrong is said with its line
    if named:
        line = named[0].start_mark.line + 1
        raise InvalidStudy(f"anchors (&) and aliases (*) are not taken here, at line {line}; write the value again")


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise InvalidStudy(f"{path} is larger than {LARGEST_BYTES} bytes; a study is a page of text")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidStudy(f"{path} cannot be read: {error}") from error


def as_yaml(content: Any) -> str:
    """A study as text of a study file."""
    stream = io.StringIO()
    dumper = YAML(typ="safe", pure=True)
    dumper.default_flow_style = None
    dumper.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # the order in which it is written
    dumper.allow_unicode = True
    dumper.width = 110
    dumper.dump(content, stream)
    return stream.getvalue()


def _faults(study: Any) -> list[Fault]:
    try:
        spec = StudySpec.model_validate(study)
    except ValidationError as error:
        return schema_faults(error)
    return space_faults(spec.search_space, spec.training, spec.adapter, spec.search)


def _member(node: Node | None, name: str) -> Node | None:
    pairs = node.value if isinstance(node, MappingNode) else []
    return next((value for key, value in pairs if key.value == name), None)


def _is_unquoted(error: Exception) -> bool:
    """Whether a value could not be read that quotes would make text, such as ``@x`` or ``%a``."""
    return "cannot start any token" in str(error) or "could not determine a constructor" in str(error)
