"""The tables of transitions."""

from __future__ import annotations

import pytest

from service.domain.states import (
    STUDY_ENDED,
    STUDY_TRANSITIONS,
    TRIAL_ENDED,
    TRIAL_TRANSITIONS,
    StudyState,
    TrialState,
    check_study_transition,
    check_trial_transition,
)
from service.errors import Conflict

# Written out a second time, from the design: queued -> running <-> paused, running -> an end, completed -> running.
STUDY_ALLOWED = {
    ("queued", "running"),
    ("queued", "paused"),
    ("queued", "cancelled"),
    ("queued", "failed"),
    ("running", "paused"),
    ("paused", "running"),
    ("paused", "cancelled"),
    ("paused", "failed"),
    ("running", "completed"),
    ("running", "cancelled"),
    ("running", "failed"),
    ("completed", "running"),
}
TRIAL_ALLOWED = {
    ("queued", "running"),
    ("queued", "cancelled"),
    ("queued", "failed"),
    ("running", "queued"),
    ("running", "waiting"),
    ("waiting", "queued"),
    ("waiting", "pruned"),
    ("waiting", "cancelled"),
    ("running", "completed"),
    ("running", "pruned"),
    ("running", "infeasible"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("failed", "queued"),
}


@pytest.mark.parametrize("current", StudyState)
@pytest.mark.parametrize("wanted", StudyState)
def test_study_transitions(current: StudyState, wanted: StudyState) -> None:
    if (current, wanted) in STUDY_ALLOWED:
        check_study_transition(current, wanted)
    else:
        with pytest.raises(Conflict, match=f"a {current} study cannot become {wanted}"):
            check_study_transition(current, wanted)


@pytest.mark.parametrize("current", TrialState)
@pytest.mark.parametrize("wanted", TrialState)
def test_trial_transitions(current: TrialState, wanted: TrialState) -> None:
    if (current, wanted) in TRIAL_ALLOWED:
        check_trial_transition(current, wanted)
    else:
        with pytest.raises(Conflict, match=f"a {current} trial cannot become {wanted}"):
            check_trial_transition(current, wanted)


def test_the_tables_contain_every_state_and_the_final_states() -> None:
    assert set(STUDY_TRANSITIONS) == set(StudyState)
    assert set(TRIAL_TRANSITIONS) == set(TrialState)
    assert TRIAL_ENDED == {"completed", "pruned", "infeasible", "failed", "cancelled"}
    assert STUDY_ENDED == {"completed", "cancelled", "failed"}
