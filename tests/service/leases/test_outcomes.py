"""How the end of an attempt changes its trial and study, for every result and kind of failure."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.domain.records import Failure, Study, Trial
from service.domain.states import FailureKind, StopReason, StudyState, TrialState
from service.leases.outcomes import MOST_LOSSES, Outcome, of_failure, of_loss, of_result

OPEN, ENDED = StudyState.RUNNING, StudyState.CANCELLED
QUEUED, CANCELLED, FAILED, INFEASIBLE = (
    TrialState.QUEUED,
    TrialState.CANCELLED,
    TrialState.FAILED,
    TrialState.INFEASIBLE,
)


def make_study(state: StudyState, retries: int = 1) -> Study:
    spec = SimpleNamespace(search=SimpleNamespace(retries=retries), limits=SimpleNamespace(trial_minutes=5))
    return cast(Study, SimpleNamespace(state=state, spec=spec))


def make_trial(**values: Any) -> Trial:
    named = dict.fromkeys(Trial.__dataclass_fields__)
    return Trial(**{**named, "number": 3, "errors": 0, "losses": 0, "state": TrialState.RUNNING, **values})


@pytest.mark.parametrize(
    ("result", "stop_reason", "study", "state"),
    [
        ("released", None, OPEN, QUEUED),
        ("released", StopReason.PRUNED, OPEN, QUEUED),
        ("released", StopReason.CANCELLED, OPEN, CANCELLED),
        ("released", None, ENDED, CANCELLED),
        ("cancelled", StopReason.PAUSED, OPEN, QUEUED),
        ("cancelled", StopReason.PAUSED, ENDED, CANCELLED),
        ("cancelled", StopReason.TIMED_OUT, OPEN, INFEASIBLE),
        ("cancelled", StopReason.TIMED_OUT, ENDED, CANCELLED),
        ("cancelled", StopReason.CANCELLED, OPEN, CANCELLED),
        ("completed", None, OPEN, TrialState.COMPLETED),
        ("completed", StopReason.CANCELLED, ENDED, TrialState.COMPLETED),
        ("pruned", StopReason.PRUNED, OPEN, TrialState.PRUNED),
    ],
)
def test_a_result_without_a_failure_sets_the_trials_state(
    result: Any, stop_reason: StopReason | None, study: StudyState, state: TrialState
) -> None:
    values = {"metrics": {"accuracy": 0.5}}
    outcome = of_result(make_study(study), make_trial(stop_reason=stop_reason), result, None, values)
    assert outcome.state is state
    assert outcome.study_failure is None
    if state is QUEUED:
        # The trial starts over: this attempt's measurements are dropped and its lease ends.
        assert outcome.values == {"lease_id": None, "stop_reason": None}
    else:
        assert outcome.values["metrics"] == {"accuracy": 0.5}


KINDS: dict[FailureKind, tuple[TrialState, TrialState]] = {
    # The trial's state in an open study with retries left, and in a study that has ended.
    FailureKind.OUT_OF_MEMORY: (INFEASIBLE, INFEASIBLE),
    FailureKind.DIVERGED: (INFEASIBLE, INFEASIBLE),
    FailureKind.PREEMPTED: (QUEUED, CANCELLED),
    FailureKind.LOST: (QUEUED, CANCELLED),
    FailureKind.ERROR: (QUEUED, CANCELLED),
    FailureKind.STALLED: (QUEUED, CANCELLED),
    FailureKind.REJECTED: (FAILED, CANCELLED),
    FailureKind.TIMED_OUT: (FAILED, CANCELLED),
}


@pytest.mark.parametrize("kind", list(FailureKind))
def test_every_kind_of_failure_sets_the_trials_and_studys_state(kind: FailureKind) -> None:
    failure = Failure(kind, "why")
    in_open, in_ended = KINDS[kind]
    found = of_failure(make_study(OPEN), make_trial(), failure, {"metrics": {}})
    assert found.state is in_open
    assert (found.study_failure is not None) == (kind is FailureKind.REJECTED)
    ended = of_failure(make_study(ENDED), make_trial(), failure, {"metrics": {}})
    assert (ended.state, ended.study_failure) == (in_ended, None)
    assert ended.values["failure"] == failure


@pytest.mark.parametrize("kind", [FailureKind.ERROR, FailureKind.STALLED])
def test_errors_and_stalls_use_the_users_retries(kind: FailureKind) -> None:
    trial, failure = make_trial(), Failure(kind, "why")
    states = []
    for _ in range(3):
        outcome = of_failure(make_study(OPEN, retries=2), trial, failure, {})
        states.append(outcome.state)
        trial = replace(trial, errors=outcome.values.get("errors", trial.errors))
    assert states == [QUEUED, QUEUED, FAILED]


def test_losses_use_no_retries_and_fail_a_trial_at_the_fifth_without_a_checkpoint() -> None:
    for losses in range(MOST_LOSSES - 1):
        assert of_loss(make_trial(losses=losses), "gone") == Outcome(QUEUED, {"losses": losses + 1})
    last = of_loss(make_trial(losses=MOST_LOSSES - 1), "gone")
    assert last.state is FAILED
    assert last.values["failure"].kind is FailureKind.LOST
    assert "5 times" in last.values["failure"].message
