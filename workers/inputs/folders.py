"""A dataset's folder is read only if nothing in it leads outside."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from service.paths import is_hidden

from ..failures import Rejected

# Files in which a dataset names others: the card's front matter, and its stand-alone form.
_CARDS = ("README.md", ".huggingface.yaml")
_MOST_CARD_BYTES = 1 << 20


def require_contained(folder: Path, name: str, roots: Sequence[Path]) -> None:
    """Check that links in a dataset's folder, and the files that its card names, lie in the data folders.

    Raises:
        Rejected: one leads outside; names it.
    """
    for path in _entries(folder):
        if path.is_symlink() and not _is_allowed(path.resolve(), roots):
            raise Rejected(
                f"the dataset {name!r} has a link that leads out of the data directories: {path.relative_to(folder)}"
            )
    for card in _CARDS:
        for pattern in _named(folder / card):
            if re.match(r"[a-z0-9+.-]+:", pattern, re.IGNORECASE) or pattern.startswith(("/", "~", "\\")):
                raise Rejected(f"the dataset {name!r} names files elsewhere in {card}: {pattern!r}")
            if ".." in re.split(r"[/\\]", pattern):
                raise Rejected(f"the dataset {name!r} names files outside of its folder in {card}: {pattern!r}")


def _entries(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, followlinks=False):
        for name in (*folders, *files):
            yield Path(parent) / name


def _is_allowed(target: Path, roots: Sequence[Path]) -> bool:
    private = getattr(roots, "private", ())
    return any(target.is_relative_to(root) and not is_hidden(target, root, private) for root in roots)


def _named(card: Path) -> Iterator[str]:
    """Every path that a card's metadata names, under any key that names files."""
    if not card.is_file():
        return
    text = card.read_bytes()[:_MOST_CARD_BYTES].decode("utf-8", "replace")
    if card.suffix == ".md":
        parts = re.split(r"^---\s*$", text, maxsplit=2, flags=re.MULTILINE)
        text = parts[1] if len(parts) == 3 and not parts[0].strip() else ""
    try:
        metadata = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Rejected(f"{card.name} of the dataset is no YAML: {str(error).splitlines()[0]}") from error
    yield from _paths(metadata, within=False)


def _paths(found: Any, *, within: bool) -> Iterator[str]:
    if isinstance(found, dict):
        for key, value in found.items():
            yield from _paths(value, within=within or key in ("data_files", "data_dir", "path", "base_path"))
    elif isinstance(found, list):
        for value in found:
            yield from _paths(value, within=within)
    elif within and isinstance(found, str):
        yield found
