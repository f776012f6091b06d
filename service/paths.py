"""Keep the paths of users inside the allowed folders, and secrets in files of their own."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import InvalidRequest

# A hub id: one or two names without path components such as ``..``.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class DataRoots(tuple[Path, ...]):
    """The folders of users' models and data. What is ``private`` lies in none of them, such as the server's home."""

    private: tuple[Path, ...]

    def __new__(cls, folders: Iterable[Path], private: Iterable[Path] = ()) -> DataRoots:
        """The folders, with links resolved."""
        made = super().__new__(cls, (folder.resolve() for folder in folders))
        made.private = tuple(path.resolve() for path in private)
        return made

    def holding_private(self) -> list[tuple[Path, Path]]:
        """Every root that has something private below it, with that."""
        return [(root, path) for root in self for path in self.private if path.is_relative_to(root)]


def resolve_inside(path: str, roots: Sequence[Path]) -> Path | None:
    """The existing file or folder ``path`` inside one of ``roots``; ``None`` if there is none.

    Resolves links before the check, so none leads outside. Hidden entries, and what the server keeps for itself, are
    not inside: see :class:`DataRoots`.

    Raises:
        InvalidRequest: the path leads outside of every root, or to something hidden or private.
    """
    outside = hidden = False
    for root in roots:
        base = root.resolve()
        try:
            candidate = (base / path).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise InvalidRequest(f"{path!r} cannot be followed: {str(error).splitlines()[0]}") from error
        if not candidate.is_relative_to(base):
            outside = True
        elif is_hidden(candidate, base, getattr(roots, "private", ())):
            hidden = True
        elif candidate.exists():
            return candidate
    if hidden:
        raise InvalidRequest(
            f"{path!r} is hidden, or belongs to the server itself: models and data lie in visible folders of the data "
            "directories (CDKA_DATA_DIRS), outside of CDKA_HOME"
        )
    if outside or Path(path).is_absolute():
        raise InvalidRequest(f"{path!r} is outside of the allowed data directories (CDKA_DATA_DIRS)")
    return None


def is_hidden(candidate: Path, base: Path, private: Iterable[Path]) -> bool:
    """Whether a path below a root is hidden, private, or a folder that holds something private."""
    if any(part.startswith(".") for part in candidate.relative_to(base).parts):
        return True
    # A root that was named inside of the server's home is meant.
    kept = [path for path in private if not base.is_relative_to(path)]
    return any(candidate.is_relative_to(path) or path.is_relative_to(candidate) for path in kept)


def link_outside(folder: Path, roots: Sequence[Path]) -> str | None:
    """The first link in a folder that leads out of the roots, by its name; ``None`` if none does."""
    private = getattr(roots, "private", ())
    for parent, folders, files in os.walk(folder, followlinks=False):
        for name in (*folders, *files):
            path = Path(parent) / name
            if not path.is_symlink():
                continue
            try:
                target = path.resolve()
            except (OSError, RuntimeError):
                return str(path.relative_to(folder))
            if not any(target.is_relative_to(r) and not is_hidden(target, r.resolve(), private) for r in roots):
                return str(path.relative_to(folder))
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


def make_private(folder: Path) -> None:
    """Make a folder that only its owner can enter. One that exists is closed to others if it is the server's own."""
    try:
        folder.mkdir(parents=True, mode=0o700)
    except FileExistsError:
        status = folder.stat()
        own = any((folder / name).exists() for name in ("cdka.db", "admin-token", "worker-token"))
        if own and status.st_uid == os.getuid() and not status.st_mode & stat.S_ISVTX:
            folder.chmod(0o700)


def write_secret(file: Path, secret: str) -> None:
    """Write a secret to a file that only its owner can read, in place of any former one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secret + "\n")
