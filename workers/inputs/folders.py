"""A dataset's folder is read only if nothing in it leads outside."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from service.paths import link_outside

from ..failures import Rejected

# Files in which a dataset names others: the card's front matter, and its stand-alone form.
_CARDS = ("README.md", ".huggingface.yaml")
_MOST_CARD_BYTES = 1 << 20


def require_contained(folder: Path, name: str, roots: Sequence[Path]) -> None:
    """Check that links in a dataset's folder, and the files that its card names, lie in the data folders.

    Raises:
        Rejected: one leads outside; names it.
    """
    link = link_outside(folder, roots)
    if link is not None:
        raise Rejected(f"the dataset {name!r} has a link that leads out of the data directories: {link}")
    for state in folder.rglob("state.json"):
        _require_own_files(state, name)
    for card in _CARDS:
        for pattern in _named(folder / card):
            if re.match(r"[a-z0-9+.-]+:", pattern, re.IGNORECASE) or pattern.startswith(("/", "~", "\\")):
                raise Rejected(f"the dataset {name!r} names files elsewhere in {card}: {pattern!r}")
            if ".." in re.split(r"[/\\]", pattern):
                raise Rejected(f"the dataset {name!r} names files outside of its folder in {card}: {pattern!r}")


def _require_own_files(state: Path, name: str) -> None:
    """Check that what ``save_to_disk`` wrote names files beside itself.

    Raises:
        Rejected: it names others, or cannot be read.
    """
    try:
        files = [str(file["filename"]) for file in json.loads(state.read_bytes()).get("_data_files", [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Rejected(f"the dataset {name!r} cannot be loaded: its {state.name} cannot be read") from error
    if outside := next((file for file in files if Path(file).name != file), None):
        raise Rejected(f"the dataset {name!r} names files outside of its folder in {state.name}: {outside!r}")


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
