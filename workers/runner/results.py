"""The result of an attempt: what a training came to, and its delivery to the server."""

from __future__ import annotations

import logging
import time
from typing import Any, Literal

from pydantic import ValidationError

from service.client import Client
from service.errors import InputsChanged, LeaseLost, NotFound, ServiceError
from service.schemas.leases import LeaseOut, ResultIn
from service.schemas.specs import FailureKind, Inputs, StopReason

from ..failures import failed
from ..training.trial import Outcome

_log = logging.getLogger(__name__)
# How long a finished trial waits for the server during an outage.
RESULT_PATIENCE_SECONDS = 3600.0
RETRY_SECONDS = 2.0
_STATES: dict[StopReason | None, Literal["completed", "pruned", "released"]] = {
    None: "completed",
    StopReason.PRUNED: "pruned",
    StopReason.PAUSED: "released",
    StopReason.WAITING: "released",
    StopReason.RELEASED: "released",
}


def result_of(outcome: Outcome, artifact: str | None, resources: dict[str, Any]) -> ResultIn:
    """What a training came to, as the server takes it."""
    resources = {**resources, "steps": outcome.steps}
    try:
        return ResultIn(
            state=_STATES.get(outcome.stop_reason, "cancelled"),
            metrics=outcome.metrics,
            scores=outcome.scores if outcome.stop_reason is None else None,
            artifact=artifact,
            resources=resources,
        )
    except ValidationError as error:
        # A team's own task may return what is no metric.
        return _refused("; ".join(fault["msg"] for fault in error.errors()[:3]), resources)


def _refused(reason: str, resources: dict[str, Any]) -> ResultIn:
    result = failed(FailureKind.ERROR, f"its result was refused: {reason}")
    result.resources = resources
    return result


def deliver(
    client: Client,
    lease: LeaseOut,
    inputs: Inputs | None,
    undelivered: list[tuple[int, dict[str, float]]],
    checkpoint: str | None,
    result: ResultIn,
) -> None:
    """Send what the server has not taken, and the result, until it accepts them: an outage loses no trial."""
    deadline = time.monotonic() + RESULT_PATIENCE_SECONDS
    while True:
        try:
            if inputs is not None:
                client.record_inputs(lease.id, inputs)
                inputs = None
            if undelivered or checkpoint:
                client.report(lease.id, undelivered, checkpoint)
                undelivered, checkpoint = [], None
            client.finish(lease.id, result)
            return
        except InputsChanged as error:
            inputs, resources = None, result.resources
            result = failed(FailureKind.REJECTED, error.detail)
            result.resources = resources
        except (LeaseLost, NotFound) as error:
            _log.warning("trial %d is another's now: %s", lease.trial.number, error.detail)
            return
        except ServiceError as error:
            if error.status == 422 and result.state != "failed":
                # Send a failure with the reason instead of a result that the server rejects.
                result = _refused(error.detail, result.resources)
                continue
            if error.status < 500 or time.monotonic() > deadline:
                _log.error("the result of trial %d was not taken: %s", lease.trial.number, error.detail)
                return
            time.sleep(RETRY_SECONDS)
