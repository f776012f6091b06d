"""Advance a study when its trials have ended: search, then confirmation, then completed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from ..db.observations import Observations
from ..db.predictions import Predictions
from ..db.studies import Studies
from ..db.trial_columns import TrialColumns
from ..db.trial_counts import Counts
from ..db.trials import Trials
from ..domain.records import Candidate, Study, Trial, TrialCounts
from ..domain.states import (
    TRIAL_ENDED,
    EventKind,
    StopReason,
    StudyPhase,
    StudyState,
    TrialPhase,
    TrialState,
    VerdictKind,
)
from ..domain.verdicts import judge, margin_of
from ..search.pruners import Halving
from .confirmation import best_of_other_methods, best_trial, candidates, confirmation_trials, tuning_trials
from .differences import confidence_at, finished, looks, primary, regret
from .recheck import further, recheck_trials, winner


def search_trials(counts: TrialCounts) -> int:
    """The number of search trials in any state."""
    return sum(n for (phase, _), n in counts.items() if phase is TrialPhase.SEARCH)


def advance(session: Session, study: Study, now: datetime) -> None:
    """Advance a locked study to its next phase, if no trial is open and none is left to propose."""
    if study.phase is StudyPhase.MEASUREMENT and study.state in (StudyState.QUEUED, StudyState.RUNNING):
        counts = Counts(session).of_studies([study.id])[study.id]
        # The search starts even if the measurement failed.
        if not any(phase is TrialPhase.MEASUREMENT and state not in TRIAL_ENDED for phase, state in counts):
            Studies(session).set_phase(study, StudyPhase.SEARCH, now)
        return
    if study.state is not StudyState.RUNNING:
        return
    counts = Counts(session).of_studies([study.id])[study.id]
    if any(n for (_, state), n in counts.items() if state not in TRIAL_ENDED and state is not TrialState.WAITING):
        return
    if study.phase is StudyPhase.SEARCH:
        if search_trials(counts) < study.planned or _continue_waiting(session, study, counts, now):
            return
        if not _recheck(session, study, now):
            _after_search(session, study, now)
        return
    confirmed = [t for t in Trials(session).of_study(study.id, TrialPhase.CONFIRMATION) if t.candidate is not None]
    if not confirmed:
        _after_tuning(session, study, now)
    elif not _add_seeds(session, study, confirmed, now):
        Studies(session).set_state(study, StudyState.COMPLETED, now)


def _continue_waiting(session: Session, study: Study, counts: TrialCounts, now: datetime) -> bool:
    """At the end of the search: queue the waiting trials that should still run, else prune all that wait."""
    if not counts.get((TrialPhase.SEARCH, TrialState.WAITING)):
        return False
    trials, halving = Trials(session), Halving.of(study.spec)
    numbers = [] if halving is None else halving.last_promotions(Observations(session).of_study(study.id))
    waiting = trials.page(study.id, 1_000_000, None, [TrialState.WAITING])
    if not numbers:
        trials.end_all(study.id, waiting, TrialState.PRUNED, now)
    for trial in (t for t in waiting if t.number in numbers):
        trials.set_state(trial, TrialState.QUEUED, now, EventKind.TRIAL_QUEUED)
    return bool(numbers)


def _recheck(session: Session, study: Study, now: datetime) -> bool:
    """At the end of the search: queue the repetitions that its best configurations lack."""
    trials = Trials(session)
    repeated = trials.of_study(study.id, TrialPhase.RECHECK)
    searched = Observations(session).of_study(study.id)
    missing = recheck_trials(study, searched, repeated, trials.next_number(study.id))
    trials.add(study.id, missing, now)
    return bool(missing)


def end_at_limit(session: Session, study: Study, now: datetime, reason: str) -> None:
    """End a locked study: cancel queued trials and tell running ones to stop."""
    trials, studies = Trials(session), Studies(session)
    trials.cancel_queued(study.id, now)
    trials.stop_running(study.id, StopReason.CANCELLED)
    finished = any(
        state is TrialState.COMPLETED and phase is TrialPhase.SEARCH
        for (phase, state) in Counts(session).of_studies([study.id])[study.id]
    )
    state = StudyState.COMPLETED if finished else StudyState.FAILED
    studies.set_state(study, state, now, reason)


def _after_search(session: Session, study: Study, now: datetime) -> None:
    studies, trials = Studies(session), Trials(session)
    searched = Observations(session).of_study(study.id)
    repeated = trials.of_study(study.id, TrialPhase.RECHECK)
    found = winner(searched, repeated, study.spec)
    best = None if found is None else trials.numbered(study.id, found.trial.number)
    if best is None:
        reason = "no search trial finished with a value; see the trials' failures"
        studies.set_state(study, StudyState.FAILED, now, reason)
        return
    if study.spec.compare.first_seeds == 0:
        studies.set_state(study, StudyState.COMPLETED, now)
        return
    others = best_of_other_methods(study, best, searched)
    next_best = [trials.numbered(study.id, t.number) for t in further(searched, repeated, study.spec)]
    found_too = [t for t in next_best if t is not None]
    chosen = candidates(study, best, Predictions(session).of_study(study.id), others, found_too)
    study = studies.set_phase(study, StudyPhase.CONFIRMATION, now)
    if study.candidates and _found(study.candidates) == _found(chosen):
        # The extended search found nothing better, so the confirmation stays valid.
        advance(session, study, now)
        return
    trials.supersede(study.id, now)
    study = studies.set_candidates(study, chosen)
    first = trials.next_number(study.id)
    if study.spec.compare.learning_rate == "tuned":
        trials.add(study.id, tuning_trials(study, chosen, first), now)
    else:
        trials.add(study.id, confirmation_trials(study, chosen, {}, first), now)


def _found(chosen: Sequence[Candidate]) -> list[str]:
    """The titles of what the search found."""
    return [c.title for c in chosen if c.name.startswith(("best", "found"))]


def _add_seeds(session: Session, study: Study, confirmed: Sequence[Trial], now: datetime) -> bool:
    """At a look that leaves the primary question open: queue the seeds up to the next look."""
    planned, trials = looks(study.spec.compare.seeds), Trials(session)
    reached = len({t.seed for t in confirmed})
    after = [n for n in planned if n > reached]
    if not after or not is_open(session, study, confirmed):
        return False
    number = trials.next_number(study.id)
    tuned = _tuned(trials, study)
    trials.add(study.id, confirmation_trials(study, study.candidates, tuned, number, reached, after[0]), now)
    return True


def is_open(session: Session, study: Study, confirmed: Sequence[Trial]) -> bool:
    """Whether the primary question is asked and undecided, at the confidence of the look that was reached."""
    asked = next((c for c in study.candidates if c.name == primary(study)), None)
    if asked is None or asked.runs_as == study.candidates[0].name:
        return False
    reached = len({t.seed for t in confirmed})
    scores = TrialColumns(session).scores(study.id)
    best = [t.metrics[study.spec.objective.metric] for t in finished(study, study.candidates[0], confirmed).values()]
    difference = regret(study, asked, confirmed, scores, confidence_at(study.spec.compare.seeds, reached))
    if difference is None or not best:
        return False  # one of both failed with every seed
    margin = margin_of(study.spec, sum(best) / len(best))
    return judge(difference, margin) in (VerdictKind.UNDECIDED, VerdictKind.TOO_FEW_SEEDS)


def _tuned(trials: Trials, study: Study) -> dict[str, dict[str, Any]]:
    """The parameters of each candidate with its best learning rate."""
    objective = study.spec.objective
    tuned = {}
    by_candidate = trials.of_study(study.id, TrialPhase.TUNING)
    for candidate in study.candidates:
        mine = [t for t in by_candidate if t.candidate == candidate.name]
        best = best_trial(mine, objective.metric, objective.direction)
        if best is not None:
            tuned[candidate.name] = best.params
    return tuned


def _after_tuning(session: Session, study: Study, now: datetime) -> None:
    trials = Trials(session)
    tuned = _tuned(trials, study)
    trials.add(study.id, confirmation_trials(study, study.candidates, tuned, trials.next_number(study.id)), now)
