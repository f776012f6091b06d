"""States and their allowed transitions, in one table."""

from __future__ import annotations

from enum import StrEnum

from ..errors import Conflict


class StudyState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"


class StudyPhase(StrEnum):
    MEASUREMENT = "measurement"
    SEARCH = "search"
    CONFIRMATION = "confirmation"


class TrialState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"  # held at a rung of successive halving, with a checkpoint
    COMPLETED = "completed"
    PRUNED = "pruned"
    INFEASIBLE = "infeasible"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TrialPhase(StrEnum):
    """The purpose of a trial.

    ``measurement`` computes gradients and trains nothing; its number is -1. ``recheck`` repeats the best search trials
    with other seeds. ``tuning`` is the learning-rate search of each candidate before its seeds.
    """

    MEASUREMENT = "measurement"
    SEARCH = "search"
    RECHECK = "recheck"
    TUNING = "tuning"
    CONFIRMATION = "confirmation"


class FailureKind(StrEnum):
    """Why an attempt ended without a result. ``service.leases.outcomes`` has the rule for each kind."""

    PREEMPTED = "preempted"
    OUT_OF_MEMORY = "out_of_memory"
    DIVERGED = "diverged"
    ERROR = "error"
    REJECTED = "rejected"
    LOST = "lost"
    TIMED_OUT = "timed_out"
    STALLED = "stalled"


class LeaseState(StrEnum):
    HELD = "held"
    FINISHED = "finished"
    RELEASED = "released"
    EXPIRED = "expired"


class StopReason(StrEnum):
    """Why a trial stops before its last step. The server's reasons are stored; the last three are a runner's own."""

    PRUNED = "pruned"
    WAITING = "waiting"  # the trial is held at a rung: it writes a checkpoint, and may be continued later
    CANCELLED = "cancelled"
    PAUSED = "paused"
    TIMED_OUT = "timed_out"
    RELEASED = "released"  # the runner is told to return its trial to the queue
    LOST = "lost"  # the lease is no longer held
    STOPPED = "stopped"  # the server gave no reason that this version knows


class VerdictKind(StrEnum):
    """The search against something else, on the test split."""

    BETTER = "better"  # the best found is ahead, by more than the margin or by an amount that may exceed it
    EQUAL = "equal"  # the whole interval lies within the margin
    WORSE = "worse"
    UNDECIDED = "undecided"
    TOO_FEW_SEEDS = "too_few_seeds"
    SAME = "same"  # the best found is that very configuration
    PENDING = "pending"  # not confirmed yet
    NONE = "none"  # there is no confirmation


class EventKind(StrEnum):
    """The kinds of events of a study."""

    STUDY_CREATED = "study.created"
    STUDY_UPDATED = "study.updated"
    STUDY_STATE = "study.state"
    STUDY_PHASE = "study.phase"
    STUDY_INPUTS = "study.inputs"
    TRIAL_QUEUED = "trial.queued"
    TRIAL_STARTED = "trial.started"
    TRIAL_REPORTED = "trial.reported"
    TRIAL_STOPPING = "trial.stopping"
    TRIAL_WAITING = "trial.waiting"
    TRIAL_ENDED = "trial.ended"


STUDY_TRANSITIONS: dict[StudyState, frozenset[StudyState]] = {
    StudyState.QUEUED: frozenset({StudyState.RUNNING, StudyState.PAUSED, StudyState.CANCELLED, StudyState.FAILED}),
    StudyState.RUNNING: frozenset({StudyState.PAUSED, StudyState.COMPLETED, StudyState.CANCELLED, StudyState.FAILED}),
    StudyState.PAUSED: frozenset({StudyState.RUNNING, StudyState.CANCELLED, StudyState.FAILED}),
    StudyState.COMPLETED: frozenset({StudyState.RUNNING}),
    StudyState.CANCELLED: frozenset(),
    StudyState.FAILED: frozenset(),
}
TRIAL_TRANSITIONS: dict[TrialState, frozenset[TrialState]] = {
    TrialState.QUEUED: frozenset({TrialState.RUNNING, TrialState.CANCELLED, TrialState.FAILED}),
    TrialState.RUNNING: frozenset(
        {
            TrialState.QUEUED,
            TrialState.WAITING,
            TrialState.COMPLETED,
            TrialState.PRUNED,
            TrialState.INFEASIBLE,
            TrialState.FAILED,
            TrialState.CANCELLED,
        }
    ),
    TrialState.WAITING: frozenset({TrialState.QUEUED, TrialState.PRUNED, TrialState.CANCELLED}),
    TrialState.COMPLETED: frozenset(),
    TrialState.PRUNED: frozenset(),
    TrialState.INFEASIBLE: frozenset(),
    TrialState.FAILED: frozenset({TrialState.QUEUED}),
    TrialState.CANCELLED: frozenset(),
}

STUDY_ENDED = frozenset({StudyState.COMPLETED, StudyState.CANCELLED, StudyState.FAILED})
TRIAL_ENDED = frozenset(TrialState) - {TrialState.QUEUED, TrialState.RUNNING, TrialState.WAITING}


def check_study_transition(current: StudyState, wanted: StudyState) -> None:
    """Reject a transition that is not in the table.

    Raises:
        Conflict: the message names the states that could follow.
    """
    if wanted not in STUDY_TRANSITIONS[current]:
        raise Conflict(f"a {current} study cannot become {wanted}; {_possible(STUDY_TRANSITIONS[current])}")


def check_trial_transition(current: TrialState, wanted: TrialState) -> None:
    """Reject a transition that is not in the table.

    Raises:
        Conflict: the message names the states that could follow.
    """
    if wanted not in TRIAL_TRANSITIONS[current]:
        raise Conflict(f"a {current} trial cannot become {wanted}; {_possible(TRIAL_TRANSITIONS[current])}")


def _possible(states: frozenset[StudyState] | frozenset[TrialState]) -> str:
    return f"it can become {', '.join(sorted(states))}" if states else "that state is final"
