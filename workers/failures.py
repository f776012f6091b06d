"""Classify what ended a trial into the failure kinds of the server."""

from __future__ import annotations

import traceback
from typing import Literal

import torch

from service.schemas.leases import MOST_MESSAGE, FailureIn, ResultIn
from service.schemas.specs import FailureKind

# Failures of the configuration itself: it would fail again.
_INFEASIBLE = frozenset({FailureKind.OUT_OF_MEMORY, FailureKind.DIVERGED})


class Rejected(Exception):
    """The model or the data cannot be used, so no trial of the study can run. The message says what would be right."""


class Diverged(Exception):
    """The loss became NaN or infinite."""


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


def failed(kind: FailureKind, message: str) -> ResultIn:
    """The result of an attempt that failed."""
    state: Literal["infeasible", "failed"] = "infeasible" if kind in _INFEASIBLE else "failed"
    return ResultIn(state=state, failure=FailureIn(kind=kind, message=message[:MOST_MESSAGE]))


def poisons_process(error: BaseException) -> bool:
    """Whether the process must be replaced: after a CUDA error but out-of-memory, or an exception in user code."""
    return not (isinstance(error, Rejected | Diverged) or _is_out_of_memory(error))


def _is_out_of_memory(error: BaseException) -> bool:
    # Where a host's memory is limited torch's allocator says so in a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, else the name of its class."""
    return (str(error) or type(error).__name__).splitlines()[0][:2000]


def root_cause(error: BaseException) -> str:
    """What went wrong at the bottom, in one line: libraries wrap a file's fault in sentences about themselves."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
