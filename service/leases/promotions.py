"""Continue trials that successive halving holds at a rung, once results put them among the best."""

from __future__ import annotations

from collections.abc import Sequence

from ..context.context import Context
from ..context.history import Snapshot
from ..db.retries import retried
from ..db.studies import Studies
from ..db.trials import Trials
from ..domain.states import STUDY_ENDED, EventKind, StudyPhase, TrialPhase, TrialState
from ..search.policy import Problem


def promote(ctx: Context, study_id: str, snapshot: Snapshot | None = None) -> None:
    """Queue the waiting trials of a study that are to be continued now.

    ``snapshot`` is the study's state, if the caller has it. If the server stops before this, the next result of the
    study does the same.
    """
    snapshot = snapshot or ctx.histories.snapshot(ctx.db, study_id)
    study = snapshot.study
    if study.phase is not StudyPhase.SEARCH or not snapshot.counts.get((TrialPhase.SEARCH, TrialState.WAITING)):
        return
    numbers = ctx.stop_rule.promotions(Problem(study.id, study.spec, study.plan), snapshot.history)
    if numbers:
        _queue(ctx, study_id, numbers)


@retried
def _queue(ctx: Context, study_id: str, numbers: Sequence[int]) -> None:
    now = ctx.clock()
    with ctx.db.write() as session:
        study, trials = Studies(session).get(study_id, lock=True), Trials(session)
        if study.state in STUDY_ENDED:
            return
        for number in numbers:
            trial = trials.numbered(study_id, number)
            if trial is not None and trial.state is TrialState.WAITING:
                trials.set_state(trial, TrialState.QUEUED, now, EventKind.TRIAL_QUEUED)
