"""What a saved adapter is for: its task, classes and base model, in a file beside it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import AdapterError

TASK_FILE = "cdka_task.json"
# Files of a tokenizer or an image processor that belong to a model.
PROCESSING = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "preprocessor_config.json",
    "processor_config.json",
)


_TYPES: dict[str, type] = {
    "kind": str,
    "base_model": str,
    "base_revision": str,
    "base_sha256": str,
    "classes": list,
    "columns": dict,
    "template": str,
    "max_length": int,
    "origin": dict,
}


@dataclass(frozen=True, slots=True)
class TaskFile:
    """The content of ``cdka_task.json`` in an adapter's folder.

    Args:
        kind: the kind of task, which decides the model's class; see :data:`~cdka.shapes.AUTO_MODELS`.
        base_model: name of the base model, on the hub or in the data folders of its study.
        base_revision: its revision on the hub.
        base_sha256: :func:`~cdka.weights_digest` of the base model.
        classes: names of the classes in the order of the model's outputs.
        columns: columns of the data by their role.
        template: how a row becomes a text, if not from one column.
        max_length: tokens to which texts were cut.
        origin: where the adapter comes from, such as the ids of its study and trial.
    """

    kind: str
    base_model: str
    base_revision: str | None = None
    base_sha256: str | None = None
    classes: list[str] | None = None
    columns: dict[str, str] = field(default_factory=dict)
    template: str | None = None
    max_length: int | None = None
    origin: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the file into an adapter's folder."""
        (folder / TASK_FILE).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_task_file(folder: Path) -> TaskFile | None:
    """The task file of an adapter's folder; ``None`` if there is none.

    Raises:
        AdapterError: it cannot be read.
    """
    file = folder / TASK_FILE
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise AdapterError(f"{file} cannot be read: it holds no JSON object")
    for name, kinds in _TYPES.items():
        optional = name not in ("kind", "base_model")
        if not (isinstance(found.get(name), kinds) or (optional and found.get(name) is None)):
            raise AdapterError(
                f"{file} cannot be read: {name} is {'missing' if name not in found else 'of another type'}"
            )
    classes = found.get("classes")
    if classes is not None and not all(isinstance(name, str) for name in classes):
        raise AdapterError(f"{file} cannot be read: classes are names")
    # A later version may say more.
    return TaskFile(**{name: found[name] for name in _TYPES if found.get(name) is not None})


def copy_meaning(source: Path, target: Path) -> None:
    """Copy an adapter's task file, tokenizer and image processor into another folder."""
    for name in (TASK_FILE, *PROCESSING):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
