"""Read, enqueue, stop and retry trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from ..context.context import Context
from ..db.audit import Audit
from ..db.leases import Leases
from ..db.metrics import Metrics
from ..db.retries import retried
from ..db.studies import Studies
from ..db.trial_counts import Counts
from ..db.trials import Trials
from ..domain.records import MetricPoint, Principal, Study, Trial, TrialProgress
from ..domain.states import STUDY_ENDED, EventKind, StopReason, StudyPhase, StudyState, TrialPhase, TrialState
from ..domain.structure import by_group
from ..domain.study_spec import SearchedParameters
from ..errors import Conflict, Fault, InvalidRequest
from .clones import clone_faults, clone_trial
from .progress import advance, search_trials
from .start import configuration_faults, group_faults, optional_faults, search_trial, with_optional


def list_trials(
    ctx: Context,
    study_id: str,
    team_id: str | None,
    limit: int,
    after: int | None,
    states: Sequence[TrialState] = (),
    phase: TrialPhase | None = None,
    *,
    descending: bool = False,
) -> tuple[list[Trial], int | None]:
    """A page of a study's trials by number, and the cursor of the next page.

    Raises:
        NotFound: there is no such study in this team.
    """
    with ctx.db.read() as session:
        Studies(session).get(study_id, team_id)
        found = Trials(session).page(study_id, limit + 1, after, states, phase, descending=descending)
    page = found[:limit]
    return page, page[-1].number if len(found) > limit else None


def get_trial(ctx: Context, trial_id: str, team_id: str | None) -> Trial:
    """A trial.

    Raises:
        NotFound: there is none in this team.
    """
    with ctx.db.read() as session:
        return Trials(session).get(trial_id, team_id)


def progress_of(ctx: Context, study_id: str) -> dict[str, TrialProgress]:
    """How far the running trials of a study are, by trial."""
    with ctx.db.read() as session:
        held = Leases(session).held_of([study_id])
    now = ctx.clock()
    return {lease.trial_id: TrialProgress.of(lease, now) for _, lease in held}


def get_metrics(ctx: Context, trial_id: str, team_id: str | None) -> list[MetricPoint]:
    """Every reported value of a trial.

    Raises:
        NotFound: there is none in this team.
    """
    with ctx.db.read() as session:
        Trials(session).get(trial_id, team_id)
        return Metrics(session).of_trial(trial_id)


@retried
def enqueue_trial(
    ctx: Context, caller: Principal, study_id: str, params: dict[str, Any], given: SearchedParameters
) -> Trial:
    """Queue a configuration of the user. It counts as one of the study's search trials.

    ``given`` has values for parameters that only some studies search; those left out get a typical one.

    Raises:
        NotFound: there is no such study in this team.
        InvalidRequest: the configuration does not divide a layer, or is over the budget; every fault is named.
        Conflict: the study has ended, is past its search, or has no trial left.
    """
    now = ctx.clock()
    with ctx.db.write() as session:
        study = _with_room(session, caller, study_id)
        faults = optional_faults(study.spec, given, "#/params")
        faults += group_faults(study.plan, by_group(params) or None, "#/params")
        if not faults:
            params = with_optional(study.spec, study.plan, params, given)
        if faults or (faults := faults + configuration_faults(study.plan, params, "#/params")):
            raise InvalidRequest("the configuration cannot run; nothing was enqueued", faults)
        new = search_trial(study.spec, study.plan, params, Trials(session).next_number(study_id))
        (trial,) = Trials(session).add(study_id, [new], now)
        Audit(session).record(caller, now, "trial.enqueue", trial.id, study_id=study_id, params=params)
        return trial


def _with_room(session: Session, caller: Principal, study_id: str) -> Study:
    """The locked study, which takes one more search trial."""
    study = Studies(session).get(study_id, caller.scope, lock=True)
    if study.state in STUDY_ENDED or study.phase is StudyPhase.CONFIRMATION:
        raise Conflict(f"the study is {study.state} (phase {study.phase}); extend it (PATCH trials), then enqueue")
    if search_trials(Counts(session).of_studies([study_id])[study_id]) >= study.planned:
        raise Conflict(f"all {study.planned} trials of the study exist already; extend it (PATCH trials), then enqueue")
    return study


@retried
def clone(
    ctx: Context, caller: Principal, study_id: str, source_id: str, given: Mapping[str, Any], *, warm: bool
) -> Trial:
    """Queue a trial's configuration with changes. It counts as one of the study's search trials.

    Raises:
        NotFound: there is no such study in this team.
        InvalidRequest: there is no such trial in the study, the configuration cannot run, or (``warm``) the training
            cannot start from the trial's adapter.
        Conflict: the study has ended, is past its search, or has no trial left.
    """
    now = ctx.clock()
    with ctx.db.write() as session:
        study = _with_room(session, caller, study_id)
        source = Trials(session).find(source_id)
        if source is None or source.study_id != study_id:
            message = f"there is no trial {source_id} in this study; name one of its trials by id"
            raise InvalidRequest("nothing was enqueued", [Fault("#/from", message)])
        if faults := clone_faults(study, source, given, warm=warm):
            raise InvalidRequest("the clone cannot run; nothing was enqueued", faults)
        new = clone_trial(study, source, given, Trials(session).next_number(study_id), warm=warm)
        (trial,) = Trials(session).add(study_id, [new], now)
        detail = {"study_id": study_id, "from": source_id, "params": new.params, "warm": warm}
        Audit(session).record(caller, now, "trial.clone", trial.id, **detail)
        return trial


@retried
def stop_trial(ctx: Context, caller: Principal, trial_id: str) -> Trial:
    """Stop one trial: a queued or waiting one now, a running one at its next report. The study continues.

    Raises:
        NotFound: there is none in this team.
        Conflict: the trial has ended.
    """
    now = ctx.clock()
    with ctx.db.write() as session:
        trials = Trials(session)
        study_id = trials.get(trial_id, caller.scope).study_id
        study = Studies(session).get(study_id, lock=True)
        trial = trials.get(trial_id, lock=True)
        Audit(session).record(caller, now, "trial.stop", trial_id, study_id=study_id)
        if trial.state is TrialState.RUNNING:
            return trials.stop(trial, StopReason.CANCELLED, now)
        trial = trials.set_state(trial, TrialState.CANCELLED, now)
        advance(session, study, now)
        return trial


@retried
def retry_trial(ctx: Context, caller: Principal, trial_id: str) -> Trial:
    """Queue a failed trial again and reset its retries and losses. A completed study resumes for it.

    Raises:
        NotFound: there is none in this team.
        Conflict: the trial has not failed, or its study was cancelled or has failed.
    """
    now = ctx.clock()
    with ctx.db.write() as session:
        trials, studies = Trials(session), Studies(session)
        study_id = trials.get(trial_id, caller.scope).study_id
        study = studies.get(study_id, lock=True)
        trial = trials.get(trial_id, lock=True)
        if study.state in (StudyState.CANCELLED, StudyState.FAILED):
            raise Conflict(f"the trial's study is {study.state}; that state is final")
        if trial.state is not TrialState.FAILED:
            raise Conflict(f"the trial is {trial.state}; only a failed one is retried")
        fresh: dict[str, Any] = {"errors": 0, "losses": 0, "lease_id": None, "stop_reason": None, "failure": None}
        queued = trials.set_state(trial, TrialState.QUEUED, now, EventKind.TRIAL_QUEUED, **fresh)
        Audit(session).record(caller, now, "trial.retry", trial_id, study_id=study_id)
        if study.state is StudyState.COMPLETED:
            study = studies.set_state(study, StudyState.RUNNING, now)
        if trial.phase in (TrialPhase.SEARCH, TrialPhase.RECHECK) and study.phase is StudyPhase.CONFIRMATION:
            studies.set_phase(study, StudyPhase.SEARCH, now)
        return queued
