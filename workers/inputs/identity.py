"""What a study is trained on, by content: files, rows, classes, weights and tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

import cdka
from service.schemas.specs import InputFile, Inputs, InputSplit

from ..failures import Rejected
from .splits import SPLITS, Splits

Stamp = tuple[tuple[str, int, int, int, int], ...]


def stamp(paths: Iterable[Path]) -> Stamp:
    """A mark of files (of all files within folders) that changes when one is written or replaced.

    The time of a file's last change of status cannot be set back, unlike that of its content.
    """
    found = []
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            try:
                status = file.stat()
            except OSError:
                found.append((str(file), -1, -1, -1, -1))
                continue
            if not file.is_dir():
                found.append((str(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
    return tuple(found)


def model_folder(model_path: str, revision: str | None) -> Path | None:
    """The local folder of a model: its own, or the hub's snapshot that was loaded."""
    where, _ = cdka.model_source(model_path)
    if Path(where).is_dir():
        return Path(where)
    config = cached_file(where, "config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if config is None else Path(config).parent


def inputs_of(
    splits: Splits,
    classes: Sequence[str] | None,
    tokenizer: Any,
    weights_sha256: str | None,
    notes: Sequence[str],
) -> Inputs:
    """The record of a study's data and base model."""
    return Inputs(
        splits={name: _split(splits, name) for name in SPLITS if name in splits.parts},
        classes=None if classes is None else tuple(classes),
        model_sha256=weights_sha256,
        tokenizer_sha256=None if tokenizer is None else tokenizer_digest(tokenizer),
        notes=tuple(notes),
    )


def _split(splits: Splits, name: str) -> InputSplit:
    part = splits.parts[name]
    return InputSplit(
        read=part.read,
        dropped=part.dropped,
        used=len(part.numbers),
        origin=part.told()[:20_000],
        files=tuple(InputFile(name=file.name, sha256=file.sha256, bytes=file.bytes) for file in part.files),
    )


def tokenizer_digest(tokenizer: Any) -> str:
    """A SHA-256 of a tokenizer's vocabulary, rules, special tokens and chat template."""
    whole: Any = tokenizer.get_vocab()
    if getattr(tokenizer, "is_fast", False):
        whole = json.loads(tokenizer.backend_tokenizer.to_str())
        # Settings of its last call.
        whole.pop("truncation", None)
        whole.pop("padding", None)
    special = sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
    said = json.dumps([whole, special, getattr(tokenizer, "chat_template", None)], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def digest_of(model_path: str, revision: str | None) -> str | None:
    """The SHA-256 of a model's weights (:func:`cdka.weights_digest`); ``None`` if its files are not known.

    Raises:
        Rejected: a file is truncated or not in its format.
    """
    folder = model_folder(model_path, revision)
    if folder is None:
        return None
    try:
        return cdka.weights_digest(folder, cdka.model_source(model_path)[1])
    except cdka.CheckpointError as error:
        raise Rejected(f"the model's files cannot be read: {error}") from error


def require_ids(split_name: str, split: Any, numbers: Sequence[int], rows: int, tokenizer: Any) -> None:
    """Check that every token id of a prepared split has a row in the model's embedding.

    Raises:
        Rejected: one has none; names the token and the first row with it.
    """
    import pyarrow.compute as pc

    for column in ("input_ids", "labels"):
        if column not in split.column_names or not hasattr(split.features[column], "feature"):
            continue
        table = split.with_format("arrow")[:][column]
        largest = pc.max(pc.list_flatten(table)).as_py()
        if largest is None or largest < rows:
            continue
        for k, ids in enumerate(split[column]):
            wrong = [i for i in ids if i >= rows]
            if wrong:
                token = tokenizer.convert_ids_to_tokens(wrong[0])
                place = f"row {numbers[k]} of the {split_name} split" if k < len(numbers) else f"the {split_name} split"
                raise Rejected(
                    f"the tokenizer makes id {wrong[0]} ({token!r}) of {place}, but the model's embedding has {rows} "
                    "rows: the tokenizer belongs to another model, or tokens were added without resizing the embedding"
                )
