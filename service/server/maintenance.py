"""Maintenance: limits, expiries, cleaning up. Every step is idempotent and safe on several replicas."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

import fsspec

from ..context.context import Context
from ..db.events import Events
from ..db.idempotency import KeptAnswers
from ..db.leases import Leases
from ..db.retries import retried
from ..db.studies import Studies
from ..db.tokens import Tokens
from ..db.trials import Trials
from ..db.webhooks import Webhooks
from ..domain.records import Lease, Study
from ..domain.states import StudyState
from ..errors import NotFound
from ..leases.acquisition import expire_leases
from ..leases.results import overrun, stall
from ..paths import is_inside
from ..studies.progress import end_at_limit

_log = logging.getLogger(__name__)
# How long a POST may be repeated under its key.
KEPT_ANSWERS = timedelta(hours=24)
KEPT_RUNNERS = timedelta(days=7)
# Most checkpoints removed per round.
MOST_COLLECTED = 200


def maintain(ctx: Context) -> None:
    """Enforce expired leases, limits of studies and trials, and stalls."""
    expire_leases(ctx)
    now = ctx.clock()
    with ctx.db.read() as session:
        limited = {s.id: s for s in Studies(session).open_with_limits()}
        if not limited:
            return
        leases: dict[str, list[Lease]] = {study_id: [] for study_id in limited}
        for study_id, lease in Leases(session).held_of(list(limited)):
            leases[study_id].append(lease)
    for study in limited.values():
        reason = _limit_reached(study, leases[study.id], now)
        if reason is not None:
            _end(ctx, study.id, now, reason)
        elif now >= ctx.expiry_from:
            # During the grace period after an outage, no attempt ends: its runner could not report.
            for lease in leases[study.id]:
                _watch(ctx, study, lease, now)


def _limit_reached(study: Study, leases: list[Lease], now: datetime) -> str | None:
    limits = study.spec.limits
    if limits.hours is not None and study.started_at is not None:
        hours = (now - study.started_at).total_seconds() / 3600
        if hours >= limits.hours:
            return f"limits.hours ({limits.hours:g}) reached"
    if limits.gpu_hours is not None:
        running = sum((now - lease.acquired_at).total_seconds() for lease in leases) * study.spec.resources.shape.gpus
        if (study.gpu_seconds + running) / 3600 >= limits.gpu_hours:
            return f"limits.gpu_hours ({limits.gpu_hours:g}) used up"
    return None


@retried
def _end(ctx: Context, study_id: str, now: datetime, reason: str) -> None:
    with ctx.db.write() as session:
        try:
            study = Studies(session).get(study_id, lock=True)
        except NotFound:
            return
        if study.state is StudyState.RUNNING:
            end_at_limit(session, study, now, reason)


def _watch(ctx: Context, study: Study, lease: Lease, now: datetime) -> None:
    stalled, longest = study.spec.limits.stall_minutes, study.spec.limits.trial_minutes
    since = lease.progress_at or lease.acquired_at
    if stalled is not None and now - since > timedelta(minutes=stalled):
        _stall(ctx, lease.id, now)
    # A runner is told at its next report. If it does not stop, it loses its lease one lease time later.
    elif longest is not None and now - lease.acquired_at > timedelta(minutes=longest) + ctx.lease_time:
        _overrun(ctx, lease.id, now)


@retried
def _stall(ctx: Context, lease_id: str, now: datetime) -> None:
    with ctx.db.write() as session:
        stall(session, lease_id, now)


@retried
def _overrun(ctx: Context, lease_id: str, now: datetime) -> None:
    with ctx.db.write() as session:
        overrun(session, lease_id, now)


@retried
def tidy(ctx: Context) -> None:
    """Remove old rows: stored answers, sessions, events, deliveries, runners."""
    now = ctx.clock()
    old = now - timedelta(days=ctx.settings.event_days)
    with ctx.db.write() as session:
        KeptAnswers(session).forget_before(now - KEPT_ANSWERS)
        Tokens(session).forget_sessions(now)
        Webhooks(session).forget_before(old)
        Events(session).forget_before(old)
        Leases(session).forget_runners(now - KEPT_RUNNERS)


def collect_checkpoints(ctx: Context) -> int:
    """Remove checkpoints that nothing will resume from; returns of how many trials."""
    with ctx.db.read() as session:
        over = Trials(session).needless_checkpoints(MOST_COLLECTED)
    removed = 0
    for trial_id, study_id, checkpoint in over:
        # All checkpoints of a trial lie in one folder. A worker's URL must not remove anything outside of its study.
        folder = checkpoint.rsplit("/", 1)[0]
        root = f"{ctx.settings.artifacts_url.rstrip('/')}/studies/{study_id}/trials"
        try:
            if is_inside(folder, root) and folder.endswith("/checkpoints"):
                files, path = fsspec.url_to_fs(folder)
                if files.exists(path):
                    files.rm(path, recursive=True)
        except Exception:  # stores raise errors of their own; one trial must not block the others
            _log.exception("the checkpoints of trial %s cannot be removed; they are tried again later", trial_id)
            continue
        _forget_checkpoint(ctx, trial_id)
        removed += 1
    return removed


@retried
def _forget_checkpoint(ctx: Context, trial_id: str) -> None:
    with ctx.db.write() as session:
        Trials(session).write(trial_id, checkpoint=None)
