"""A trial's adapter as a zip archive, made while it is sent."""

from __future__ import annotations

import os
import posixpath
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ..context.context import Context
from ..db.trials import Trials
from ..domain.shape import GIB
from ..errors import NotFound, Unavailable
from ..paths import is_inside

# Adapters are megabytes; a much larger folder is not an adapter.
LARGEST_ADAPTER = 4 * GIB
_PIECE = 1 << 18


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    size: int
    open: Callable[[], IO[bytes]]


def adapter_archive(ctx: Context, trial_id: str, team_id: str | None) -> tuple[Iterator[bytes], str]:
    """A trial's adapter as the pieces of a zip file, and a name for it. Nothing is written to disk.

    In a folder, links are not followed: a worker must not open anything outside of the artifact store.

    Raises:
        NotFound: there is no such trial in this team, or it has no adapter in the store.
        Unavailable: the artifact store does not answer.
    """
    with ctx.db.read() as session:
        trial = Trials(session).get(trial_id, team_id)
    if trial.artifact is None:
        raise NotFound(f"trial {trial.number} has no adapter: only completed trials have one")
    store = ctx.settings.artifacts_url.rstrip("/")
    if not is_inside(trial.artifact, f"{store}/studies/{trial.study_id}"):
        raise NotFound(f"trial {trial.number}'s adapter is outside the artifact store")
    try:
        files, folder = fsspec.url_to_fs(trial.artifact)
        found = _local(store, folder) if isinstance(files, LocalFileSystem) else _remote(files, folder)
    except FileNotFoundError:
        found = []
    except OSError as error:
        raise Unavailable(f"the artifact store does not answer: {type(error).__name__}") from error
    if not found:
        raise NotFound(f"trial {trial.number}'s adapter no longer exists")
    if sum(file.size for file in found) > LARGEST_ADAPTER:
        raise NotFound(f"trial {trial.number}'s folder is too large to be an adapter")
    return _zipped(found), f"trial-{trial.number:05d}-adapter.zip"


def _remote(files: fsspec.AbstractFileSystem, folder: str) -> list[_File]:
    def opener(name: str) -> Callable[[], IO[bytes]]:
        return lambda: files.open(name, "rb")

    details = files.find(folder, detail=True)
    return [
        _File(posixpath.relpath(name, folder), int(detail.get("size") or 0), opener(name))
        for name, detail in sorted(details.items())
        if is_inside(name, folder)
    ]


def _local(store: str, folder: str) -> list[_File]:
    """The files below a folder of the store.

    Raises:
        NotFound: a link, or anything but a plain file, lies on the way or in it.
    """
    root = Path(fsspec.url_to_fs(store)[1]).resolve()
    inside = PurePosixPath(posixpath.relpath(posixpath.normpath(folder), fsspec.url_to_fs(store)[1]))

    def opener(name: str) -> Callable[[], IO[bytes]]:
        return lambda: os.fdopen(open_beneath(root, inside / name), "rb")

    found = []
    top = open_beneath(root, inside, os.O_DIRECTORY)
    try:
        for parent, folders, names, descriptor in os.fwalk(".", dir_fd=top, follow_symlinks=False):
            for name in (*folders, *names):
                path = posixpath.normpath(posixpath.join(parent, name))
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    found.append(_File(path, status.st_size, opener(path)))
                elif not stat.S_ISDIR(status.st_mode):
                    raise NotFound(f"{path} of the adapter is a link, or no file")
    finally:
        os.close(top)
    return sorted(found, key=lambda file: file.name)


def open_beneath(root: Path, inside: PurePosixPath, flags: int = 0) -> int:
    """A descriptor of a file or folder below a root; no component on the way may be a link.

    Raises:
        NotFound: one is.
        FileNotFoundError: it does not exist.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    parts = inside.parts
    for k, part in enumerate(parts):
        kind = flags if k == len(parts) - 1 else os.O_DIRECTORY
        try:
            following = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | kind, dir_fd=descriptor)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise NotFound(f"{inside} lies behind a link in the artifact store") from error
        finally:
            os.close(descriptor)
        descriptor = following
    return descriptor


class _Sink:
    """What zipfile writes to; its pieces are taken as they come."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is kept back."""

    def taken(self) -> Iterator[bytes]:
        pieces, self.pieces = self.pieces, []
        yield from pieces


def _zipped(files: list[_File]) -> Iterator[bytes]:
    sink = _Sink()
    # A sink that cannot seek makes zipfile write sizes behind the content. Weights do not compress.
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        for file in files:
            with closing(file.open()) as source, archive.open(file.name, "w") as target:
                while piece := source.read(_PIECE):
                    target.write(piece)
                    yield from sink.taken()
            yield from sink.taken()
    yield from sink.taken()
