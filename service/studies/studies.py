"""Create, read and control studies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from ..context.context import Context
from ..db.audit import Audit
from ..db.predictions import Predictions
from ..db.retries import retried
from ..db.studies import Studies, with_text
from ..db.trial_counts import Counts
from ..db.trials import Trials
from ..domain.group_spec import Grouping
from ..domain.ids import new_id
from ..domain.records import Principal, Study, TrialCounts
from ..domain.states import STUDY_ENDED, StopReason, StudyPhase, StudyState, TrialPhase, TrialState
from ..domain.study_spec import StudyChanges
from ..errors import Changed, Conflict, Fault, InvalidRequest
from ..tenancy.quotas import require_room_for_study
from .plans import Planned, plan_study
from .predictions import measurement
from .progress import advance, is_open, search_trials
from .removal import purge
from .start import start_trials


def create_study(ctx: Context, caller: Principal, body: Any) -> tuple[Study, Planned]:
    """Validate a study in full, then record it with its predictions.

    Raises:
        InvalidStudy: with every fault; nothing was stored.
        QuotaExceeded: the team's quota of open studies is used up.
    """
    planned = ctx.aside(plan_study, body, ctx.settings.data_roots)
    (study,) = store(ctx, caller, [(planned, None)])
    return study, planned


@retried
def store(ctx: Context, caller: Principal, planned: Sequence[tuple[Planned, Grouping | None]]) -> list[Study]:
    """Record new studies, each with its place in a group if it has one: all of them or none."""
    now = ctx.clock()
    with ctx.db.write() as session:
        return [_store(session, caller, one, group, now) for one, group in planned]


def _store(session: Session, caller: Principal, planned: Planned, group: Grouping | None, now: datetime) -> Study:
    measure = measurement(planned.spec, planned.plan)
    study = Study(
        id=new_id(now),
        team_id=caller.team_id,
        name=planned.spec.name,
        state=StudyState.QUEUED,
        phase=StudyPhase.SEARCH if measure is None else StudyPhase.MEASUREMENT,
        reason=None,
        spec=planned.spec,
        plan=planned.plan,
        candidates=[],
        version=0,
        revision=0,
        planned=planned.spec.search.trials,
        created_at=now,
        started_at=None,
        finished_at=None,
        group=group,
    )
    require_room_for_study(session, caller.team_id)
    studies = Studies(session)
    study = studies.add(study)
    Predictions(session).add(study.id, planned.predictions, planned.spec.compare.predictors)
    first = start_trials(study.spec, study.plan, planned.predictions, 0, study.planned)
    session.flush()
    for new in ([] if measure is None else [measure], first):
        for trial in Trials(session).add(study.id, new, now):
            study = replace(study, version=trial.version)
    Audit(session).record(caller, now, "study.create", study.id, name=study.name)
    return study


def get_study(ctx: Context, study_id: str, team_id: str | None) -> tuple[Study, TrialCounts]:
    """A study and the number of its trials by phase and state.

    Raises:
        NotFound: there is none in this team.
    """
    with ctx.db.read() as session:
        return _with_counts(session, study_id, team_id)


def _with_counts(session: Session, study_id: str, team_id: str | None) -> tuple[Study, TrialCounts]:
    study = Studies(session).get(study_id, team_id)
    return study, Counts(session).of_studies([study_id])[study_id]


def list_studies(
    ctx: Context,
    team_id: str | None,
    limit: int,
    after: str | None,
    *,
    name: str | None = None,
    states: Sequence[StudyState] = (),
    ascending: bool = False,
) -> tuple[list[tuple[Study, TrialCounts]], str | None]:
    """A page of studies by age, and the cursor of the next page."""
    with ctx.db.read() as session:
        found = Studies(session).page(team_id, limit + 1, after, with_text(name, states), ascending)
        page = found[:limit]
        counts = Counts(session).of_studies([s.id for s in page])
    cursor = page[-1].id if len(found) > limit else None
    return [(s, counts[s.id]) for s in page], cursor


@retried
def cancel_study(ctx: Context, caller: Principal, study_id: str) -> tuple[Study, TrialCounts]:
    """Cancel a study. Queued trials are cancelled now, running ones are told to stop at their next report.

    Raises:
        NotFound: there is none in this team.
        Conflict: the study has already ended.
    """
    now = ctx.clock()
    with ctx.db.write() as session:
        studies, trials = Studies(session), Trials(session)
        study = studies.get(study_id, caller.scope, lock=True)
        studies.set_state(study, StudyState.CANCELLED, now, reason="cancelled by request")
        trials.cancel_queued(study_id, now)
        trials.stop_running(study_id, StopReason.CANCELLED)
        Audit(session).record(caller, now, "study.cancel", study_id)
        return _with_counts(session, study_id, None)


@retried
def pause_study(ctx: Context, caller: Principal, study_id: str, *, drain: bool) -> tuple[Study, TrialCounts]:
    """Start no more trials of a study. Running trials finish (``drain``) or are queued again now.

    Raises:
        NotFound: there is none in this team.
        Conflict: the study has ended or is paused already.
    """
    now = ctx.clock()
    with ctx.db.write() as session:
        studies = Studies(session)
        study = studies.get(study_id, caller.scope, lock=True)
        how = "running trials go on to their end" if drain else "running trials stop and go back to the queue"
        studies.set_state(study, StudyState.PAUSED, now, reason=f"paused by request: {how}")
        if not drain:
            Trials(session).stop_running(study_id, StopReason.PAUSED)
        Audit(session).record(caller, now, "study.pause", study_id, drain=drain)
        return _with_counts(session, study_id, None)


@retried
def resume_study(ctx: Context, caller: Principal, study_id: str) -> tuple[Study, TrialCounts]:
    """Resume a paused study.

    Raises:
        NotFound: there is none in this team.
        Conflict: the study is not paused.
    """
    now = ctx.clock()
    with ctx.db.write() as session:
        studies = Studies(session)
        study = studies.get(study_id, caller.scope, lock=True)
        if study.state is not StudyState.PAUSED:
            raise Conflict(f"a {study.state} study cannot be resumed; only a paused one can")
        study = studies.set_state(study, StudyState.RUNNING, now)
        Trials(session).go_on(study_id)
        Audit(session).record(caller, now, "study.resume", study_id)
        # Trials that finished during the pause may have been the last of their phase.
        advance(session, study, now)
        return _with_counts(session, study_id, None)


@retried
def update_study(
    ctx: Context, caller: Principal, study_id: str, changes: StudyChanges, revision: int | None = None
) -> tuple[Study, TrialCounts]:
    """Change name, number of trials, priority, concurrency, retries, limits or seeds. Does not affect running trials.

    A completed study that gets more trials or a later limit resumes its search. With more seeds its confirmation goes
    on, if the primary question is open: the study is then looked at again, so every interval is a little wider.

    Raises:
        NotFound: there is none in this team.
        Changed: the study is not at ``revision``.
        InvalidRequest: fewer trials or seeds than there are already.
        Conflict: the study has ended and cannot be extended, or further seeds have no question to decide.
    """
    now = ctx.clock()
    with ctx.db.write() as session:
        studies = Studies(session)
        study = studies.get(study_id, caller.scope, lock=True)
        if revision is not None and revision != study.revision:
            raise Changed(f"the study is at revision {study.revision}, not {revision}: read it again, then change it")
        given = changes.given()
        there = search_trials(Counts(session).of_studies([study_id])[study_id])
        if changes.trials is not None and changes.trials < there:
            fault = Fault("#/trials", f"{there} trials exist already; give {there} to ask for no more")
            raise InvalidRequest("the study cannot be changed like this", [fault])
        if study.state in (StudyState.CANCELLED, StudyState.FAILED) and given.keys() - {"name"}:
            raise Conflict(f"a {study.state} study can only be renamed; that state is final")
        if changes.seeds is not None:
            _require_more_seeds(session, study, changes.seeds)
        study = studies.set_spec(study, changes.applied_to(study.spec), now, given)
        Audit(session).record(caller, now, "study.update", study_id, **given)
        if changes.trials is not None or changes.limits is not None:
            _go_on(session, study, there, now)
            study = studies.get(study_id)
        if changes.seeds is not None and study.state is StudyState.COMPLETED and study.candidates:
            advance(session, studies.set_state(study, StudyState.RUNNING, now), now)
        return _with_counts(session, study_id, None)


def _require_more_seeds(session: Session, study: Study, seeds: int) -> None:
    """Check that a study's confirmation can go on to so many seeds.

    Raises:
        InvalidRequest: it has none, or as many already.
        Conflict: they have nothing to decide.
    """
    if not study.spec.compare.first_seeds:
        fault = Fault("#/seeds", "the study has no confirmation (compare.seeds is 0); clone it with seeds")
        raise InvalidRequest("the study cannot be changed like this", [fault])
    confirmed = Trials(session).of_study(study.id, TrialPhase.CONFIRMATION)
    there = max(study.spec.compare.first_seeds, len({t.seed for t in confirmed if t.candidate is not None}))
    if seeds <= there:
        fault = Fault("#/seeds", f"each candidate has {there} seeds already; ask for more than that in all")
        raise InvalidRequest("the study cannot be changed like this", [fault])
    current = [t for t in confirmed if t.candidate is not None]
    # At the confidence of the looks that were planned: a decision stays one.
    if study.state is StudyState.COMPLETED and not is_open(session, study, current):
        raise Conflict("the primary question is decided, or cannot be asked; more seeds would change nothing")


def _go_on(session: Session, study: Study, there: int, now: datetime) -> None:
    """Resume the search if trials are left to propose; if none are, nothing may be left to run."""
    studies = Studies(session)
    if study.planned <= there:
        advance(session, study, now)
        return
    if study.phase is StudyPhase.CONFIRMATION:
        study = studies.set_phase(study, StudyPhase.SEARCH, now)
    if study.state is StudyState.COMPLETED:
        studies.set_state(study, StudyState.RUNNING, now)


def delete_study(ctx: Context, caller: Principal, study_id: str, *, purge_now: bool) -> None:
    """Cancel and hide a study now. Its rows and artifacts are removed after ``CDKA_PURGE_HOURS``, or now.

    Raises:
        NotFound: there is none in this team.
    """
    _delete(ctx, caller, study_id, purge_now)
    if purge_now:
        purge(ctx, study_id)


@retried
def _delete(ctx: Context, caller: Principal, study_id: str, purge_now: bool) -> None:
    now = ctx.clock()
    with ctx.db.write() as session:
        studies, trials = Studies(session), Trials(session)
        study = studies.get(study_id, caller.scope, lock=True)
        if study.state not in STUDY_ENDED:
            studies.set_state(study, StudyState.CANCELLED, now, reason="deleted by request")
            trials.cancel_queued(study_id, now)
        # Its runners get 404 and stop.
        for trial in trials.running(study_id):
            trials.set_state(trial, TrialState.CANCELLED, now)
        studies.mark_deleted(study_id, now)
        Audit(session).record(caller, now, "study.delete", study_id, name=study.name, purge=purge_now)
