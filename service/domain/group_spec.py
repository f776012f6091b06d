"""Several studies in one file: the same study at several budgets, on several models or tasks, or searched again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ..errors import Fault, InvalidStudy

MOST = 32


class Axis(StrEnum):
    """In what the studies of a group differ."""

    BUDGETS = "budgets"
    MODELS = "models"
    TASKS = "tasks"
    REPEATS = "repeats"


# The section that each entry of a list stands for.
_SECTIONS = {Axis.BUDGETS: "budget", Axis.MODELS: "model", Axis.TASKS: "task"}


class Grouping(BaseModel):
    """A study's place in its group."""

    model_config = ConfigDict(frozen=True)
    id: str
    name: str
    axis: Axis
    label: str
    position: int
    of: int


@dataclass(frozen=True, slots=True)
class Member:
    """A study of a group: its label, its body, and where in the group's body its own section is written."""

    label: str
    body: dict[str, Any]
    section: str
    place: str

    def located(self, fault: Fault) -> Fault:
        """A fault of the study at its place in the group's body."""
        if self.section and (fault.pointer + "/").startswith(f"#/{self.section}/"):
            return Fault(f"#/{self.place}{fault.pointer.removeprefix(f'#/{self.section}')}", fault.detail)
        return fault


def is_group(body: Any) -> bool:
    """Whether a body describes several studies."""
    return isinstance(body, Mapping) and _axes(body) != []


def _axes(body: Mapping[str, Any]) -> list[Axis]:
    search = body.get("search")
    repeated = isinstance(search, Mapping) and search.get("repeats", 1) != 1
    return [axis for axis in _SECTIONS if axis in body] + ([Axis.REPEATS] if repeated else [])


def expand(body: Any) -> tuple[Axis, list[Member]]:
    """The studies of a group, in order.

    Raises:
        InvalidStudy: the body names no list, several, or one that is none.
    """
    if not isinstance(body, Mapping):
        raise InvalidStudy("a group is an object with the sections of a study", [Fault("#", "write an object")])
    axes = _axes(body)
    if len(axes) != 1:
        lists = ", ".join(_SECTIONS)
        said = "this is one study: " if not axes else f"{' and '.join(axes)} are given; "
        fault = Fault("#", f"{said}name exactly one list out of {lists}, or search.repeats above 1")
        raise InvalidStudy("the group has 1 fault; nothing was stored", [fault])
    axis = axes[0]
    members = _repeats(body) if axis is Axis.REPEATS else _listed(body, axis)
    return axis, members


def _repeats(body: Mapping[str, Any]) -> list[Member]:
    search = dict(body["search"])
    count = search.pop("repeats")
    if isinstance(count, bool) or not isinstance(count, int) or not 2 <= count <= MOST:
        message = f"write a whole number from 1 to {MOST}"
        raise InvalidStudy("the group has 1 fault; nothing was stored", [Fault("#/search/repeats", message)])
    seed = search.get("seed", 0)
    first = seed if isinstance(seed, int) else 0
    bodies = [{**body, "search": {**search, "seed": first + k if k else seed}} for k in range(count)]
    labels = [f"search {k + 1}" for k in range(count)]
    return [Member(label, _named(own, label), "", "") for label, own in zip(labels, bodies, strict=True)]


def _listed(body: Mapping[str, Any], axis: Axis) -> list[Member]:
    section, entries, faults = _SECTIONS[axis], body[axis], []
    if section in body:
        faults.append(Fault(f"#/{section}", f"{axis} names one for each study; leave this out"))
    if not isinstance(entries, list) or not 2 <= len(entries) <= MOST:
        faults.append(Fault(f"#/{axis}", f"write a list of 2 to {MOST}; a single one goes under {section}"))
    if faults:
        raise InvalidStudy(f"the group has {len(faults)} fault{'s' * (len(faults) != 1)}; nothing was stored", faults)
    rest = {name: value for name, value in body.items() if name != axis}
    labels = _distinct([_LABELS[axis](entry) for entry in entries])
    return [
        Member(label, _named({**rest, section: entry}, label), section, f"{axis}/{k}")
        for k, (label, entry) in enumerate(zip(labels, entries, strict=True))
    ]


def _named(body: Mapping[str, Any], label: str) -> dict[str, Any]:
    name = body.get("name")
    return {**body, "name": f"{name[:140]}, {label}"} if isinstance(name, str) else dict(body)


def _distinct(labels: Sequence[str]) -> list[str]:
    return [label if labels.count(label) == 1 else f"{label} ({k + 1})" for k, label in enumerate(labels)]


def _budget_label(entry: Any) -> str:
    if isinstance(entry, Mapping):
        if "lora_rank" in entry:
            return f"LoRA rank {entry['lora_rank']}"[:50]
        if isinstance(sizes := entry.get("configuration"), Mapping):
            return f"({sizes.get('r1')}, {sizes.get('r2')}, {sizes.get('r')})"[:50]
        if "fraction" in entry:
            return f"{entry['fraction']} of the model"[:50]
        if "max_parameters" in entry:
            return f"{entry['max_parameters']} parameters"[:50]
    return "budget"


def _model_label(entry: Any) -> str:
    path = str(entry.get("path", "model")) if isinstance(entry, Mapping) else "model"
    return path.rstrip("/").rsplit("/", 1)[-1][:50]


def _task_label(entry: Any) -> str:
    dataset = entry.get("dataset") if isinstance(entry, Mapping) else None
    if not isinstance(dataset, Mapping):
        return "task"
    files = dataset.get("data_files")
    file = files.get("train") if isinstance(files, Mapping) else files
    named = file if isinstance(file, str) else dataset.get("name") or dataset.get("path") or "task"
    return str(named).rstrip("/").rsplit("/", 1)[-1][:50]


_LABELS = {Axis.BUDGETS: _budget_label, Axis.MODELS: _model_label, Axis.TASKS: _task_label}


def schema_of(study: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of a group's body, from that of a study."""
    properties = dict(study["properties"])
    required = [name for name in study.get("required", []) if name not in _SECTIONS.values()]
    for axis, section in _SECTIONS.items():
        form = {key: value for key, value in properties[section].items() if key != "default"}
        words = f"One study for each, in place of {section}."
        properties[axis] = {"type": "array", "items": form, "minItems": 2, "maxItems": MOST, "description": words}
    words = "A study with exactly one of budgets, models and tasks in place of its section, or with search.repeats."
    return {**study, "title": "GroupSpec", "description": words, "properties": properties, "required": required}


# How often a search is repeated, in a study's file.
Repeats = Annotated[int, Field(ge=1, le=MOST)]
