"""The workers' side: lease, report, result, demand."""

from __future__ import annotations

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from fastapi import APIRouter

from ..domain.inputs import Inputs
from ..domain.records import Failure
from ..leases import acquisition, results, trial_logs
from ..leases import demand as demands
from ..leases import inputs as recording
from ..leases import reports as reporting
from ..schemas.leases import (
    DemandItem,
    DemandOut,
    DirectiveOut,
    InputsOut,
    LeasedTrial,
    LeaseOut,
    LeaseRequest,
    LeasesOut,
    LogIn,
    LogTaken,
    ReportsIn,
    ResultIn,
    ResultOut,
)
from .dependencies import ContextDep, Id, IdempotencyKey, Worker, problems
from .idempotency import IdempotentRoute

router = APIRouter(tags=["workers"], route_class=IdempotentRoute)


# Lease requests wait in their own threads, so that reports, results and pages never queue behind them.
LEASE_THREADS = 256
_threads: RunVar[CapacityLimiter] = RunVar("lease_threads")


def _limiter() -> CapacityLimiter:
    """The threads of this event loop's lease requests."""
    try:
        return _threads.get()
    except LookupError:
        _threads.set(made := CapacityLimiter(LEASE_THREADS))
        return made


@router.post("/leases", responses=problems())
async def acquire(
    ctx: ContextDep, principal: Worker, body: LeaseRequest, idempotency_key: IdempotencyKey = None
) -> LeasesOut:
    """Lease trials to a runner.

    The list is empty when there is nothing to do, or when other runners of the same study are being served; ask again
    after `retry_after_seconds`.
    """
    runner = acquisition.Runner(body.runner, body.shape, principal.scope, tuple(body.warm), body.host)
    acquired = await to_thread.run_sync(acquisition.acquire, ctx, runner, body.max, limiter=_limiter())
    return LeasesOut(
        leases=[_lease(grant, ctx.settings.lease_seconds / 4) for grant in acquired.grants],
        retry_after_seconds=acquired.retry_after_seconds,
    )


def _lease(grant: acquisition.Grant, heartbeat_seconds: float) -> LeaseOut:
    trial = grant.trial
    return LeaseOut(
        id=grant.lease.id,
        expires_at=grant.lease.expires_at,
        heartbeat_seconds=heartbeat_seconds,
        trial=LeasedTrial(
            id=trial.id,
            number=trial.number,
            study_id=trial.study_id,
            phase=trial.phase,
            method=trial.method,
            seed=trial.seed,
            params=trial.params,
            study=grant.study.spec.settled.for_trial(trial.params),
            checkpoint=trial.checkpoint,
            start_from=trial.start_from,
            attempt=grant.lease.attempt,
            layers=list(grant.study.plan.at(trial.params).shapes),
            inputs=grant.study.inputs,
        ),
    )


@router.post("/leases/{lease_id}/reports", responses=problems(404, 409))
def report(
    ctx: ContextDep, principal: Worker, lease_id: Id, body: ReportsIn, idempotency_key: IdempotencyKey = None
) -> DirectiveOut:
    """Record reports (none: a heartbeat) and renew the lease. 409 means that the lease is lost: stop."""
    reports = [(r.step, r.metrics) for r in body.reports]
    said = reporting.report(ctx, lease_id, principal.scope, reports, body.checkpoint, body.total_steps)
    directive = "continue" if said.reason is None else "stop"
    return DirectiveOut(directive=directive, reason=said.reason, expires_at=said.expires_at)


@router.post("/leases/{lease_id}/logs", responses=problems(404, 409))
def append_log(
    ctx: ContextDep, principal: Worker, lease_id: Id, body: LogIn, idempotency_key: IdempotencyKey = None
) -> LogTaken:
    """Append to the attempt's log. Repeated text is ignored; the newest million characters are kept."""
    return LogTaken(next=trial_logs.append_log(ctx, lease_id, principal.scope, body.start, body.text))


@router.put("/leases/{lease_id}/inputs", responses=problems(404, 409))
def record_inputs(ctx: ContextDep, principal: Worker, lease_id: Id, body: Inputs) -> InputsOut:
    """Record the study's data and base model after the first step. 409 means that the study began with others."""
    return InputsOut(inputs=recording.record_inputs(ctx, lease_id, principal.scope, body))


@router.put("/leases/{lease_id}/result", responses=problems(404, 409))
def finish(ctx: ContextDep, principal: Worker, lease_id: Id, body: ResultIn) -> ResultOut:
    """End the attempt. Repeating the same result returns 200 and changes nothing."""
    failure = None if body.failure is None else Failure(body.failure.kind, body.failure.message)
    measured = [entry.model_dump() for entry in body.predictions]
    result = results.Result(body.state, body.metrics, body.artifact, body.resources, failure, body.scores, measured)
    return ResultOut(trial_state=results.finish(ctx, lease_id, principal.scope, result))


@router.get("/demand", responses=problems())
def demand(ctx: ContextDep, principal: Worker) -> DemandOut:
    """The number of runners of each shape that have work."""
    acquisition.expire_leases(ctx)
    return DemandOut(
        items=[DemandItem(**d.shape.as_dict(), slots=d.slots) for d in demands.demand(ctx, principal.scope)]
    )
