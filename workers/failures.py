"""Classify what ended a trial into the failure kinds of the server."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from typing import Literal

import httpx
import torch
from huggingface_hub.errors import OfflineModeIsEnabled

from service.errors import ServiceError
from service.schemas.leases import MOST_MESSAGE, FailureIn, ResultIn
from service.schemas.specs import FailureKind

# What another host or another hour may not have: no space, no memory, too many files, a store that is away.
_HOST_ERRNO = frozenset({
    *(errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE),
    *(errno.ENODEV, errno.ENXIO, errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN),
})  # fmt: skip
# Failures of the configuration itself: it would fail again.
_INFEASIBLE = frozenset({FailureKind.OUT_OF_MEMORY, FailureKind.DIVERGED})


class Rejected(Exception):
    """The model or the data cannot be used, so no trial of the study can run. The message says what would be right."""


class CannotStart(Rejected):
    """Something unforeseen failed before the first step of the study's first trial."""


class Diverged(Exception):
    """The loss became NaN or infinite."""


def before_first_step(error: Exception) -> Exception:
    """The failure of a trial before any trial of its study has made a step: data or model are to blame for it.

    What is the host's, or is classified already, stays what it is.
    """
    if isinstance(error, Rejected | Diverged) or is_of_host(error):
        return error
    return CannotStart(f"training cannot start: {root_cause(error)}")


def classify(error: BaseException) -> tuple[FailureKind, str]:
    """The failure's kind, and a message with its cause and remedy."""
    if isinstance(error, Rejected):
        return FailureKind.REJECTED, str(error)
    if isinstance(error, Diverged):
        return FailureKind.DIVERGED, str(error)
    if _is_out_of_memory(error):
        return FailureKind.OUT_OF_MEMORY, (
            f"out of memory: {first_line(error)}; lower training.batch_size or training.max_length"
        )
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (in {frames[-1].filename.rsplit('/', 1)[-1]}, line {frames[-1].lineno})" if frames else ""
    return FailureKind.ERROR, f"{type(error).__name__}: {first_line(error)}{place}"


def is_of_host(error: BaseException) -> bool:
    """Whether a failure is the host's, its device's or the network's, so that the same could succeed elsewhere."""
    for cause in _chain(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return False
        if isinstance(cause, OSError) and cause.errno in _HOST_ERRNO:
            return True
        if isinstance(cause, ConnectionError | TimeoutError | httpx.TransportError | ServiceError):
            return True
        # An assertion on the device is an index out of its range: the data's, or the model's.
        if isinstance(cause, torch.AcceleratorError) and "device-side assert" not in str(cause):
            return True
    return _is_out_of_memory(error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def failed(kind: FailureKind, message: str) -> ResultIn:
    """The result of an attempt that failed."""
    state: Literal["infeasible", "failed"] = "infeasible" if kind in _INFEASIBLE else "failed"
    return ResultIn(state=state, failure=FailureIn(kind=kind, message=message[:MOST_MESSAGE]))


def poisons_process(error: BaseException) -> bool:
    """Whether the process must be replaced: after a CUDA error but out-of-memory, or an exception in user code."""
    if isinstance(error, CannotStart):
        return True
    return not (isinstance(error, Rejected | Diverged) or _is_out_of_memory(error))


def _is_out_of_memory(error: BaseException) -> bool:
    # Where a host's memory is limited torch's allocator says so in a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, else the name of its class."""
    if isinstance(error, KeyError):
        return f"there is no {error}"
    return (str(error) or type(error).__name__).splitlines()[0][:2000]


def root_cause(error: BaseException) -> str:
    """What went wrong at the bottom, in one line: libraries wrap a file's fault in sentences about themselves."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
