"""Keep the paths of users inside the allowed folders, and secrets in files of their own."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path

from .errors import InvalidRequest

# A hub id: one or two names without path components such as ``..``.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve_inside(path: str, roots: Sequence[Path]) -> Path | None:
    """The existing file or folder ``path`` inside one of ``roots``; ``None`` if there is none.

    Resolves links before the check, so none leads outside.

    Raises:
        InvalidRequest: the path leads outside of every root.
    """
    outside = False
    for root in roots:
        base = root.resolve()
        candidate = (base / path).resolve()
        if not candidate.is_relative_to(base):
            outside = True
        elif candidate.exists():
            return candidate
    if outside or Path(path).is_absolute():
        raise InvalidRequest(f"{path!r} is outside of the allowed data directories (CDKA_DATA_DIRS)")
    return None


def locate(path: str, roots: Sequence[Path]) -> str:
    """A model or dataset: the local folder inside ``roots`` if it exists, else the hub id.

    Raises:
        InvalidRequest: neither a path inside the roots nor the form of a hub id.
    """
    found = resolve_inside(path, roots)
    if found is not None:
        return str(found)
    if not _HUB_ID.fullmatch(path):
        raise InvalidRequest(f"{path!r} is neither a folder inside the allowed data directories nor a hub id")
    return path


def is_inside(path: str, root: str) -> bool:
    """Whether a path or URL of a store lies in ``root`` of that store, after resolving dots."""
    normal, base = posixpath.normpath(path), posixpath.normpath(root)
    return normal == base or normal.startswith(base + "/")


def write_secret(file: Path, secret: str) -> None:
    """Write a secret to a file that only its owner can read, in place of any former one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secret + "\n")
