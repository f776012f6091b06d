"""Present recorded trials to Optuna as a read-only storage. Converted trials are cached.

Optuna's samplers and pruners ask a storage for the trials so far. This one holds exactly the trials it is given, under
their own numbers, plus the one that is being asked for. Between asks, only the conversion of each trial is cached,
keyed by everything it depends on. So a cached history and one rebuilt from the database give the same answers.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from copy import copy
from datetime import datetime
from typing import Any, cast

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ..domain.records import Observation
from ..domain.states import TrialState as State

STUDY = 0
_OPTUNA_STATES = {
    State.QUEUED: TrialState.RUNNING,
    State.RUNNING: TrialState.RUNNING,
    State.COMPLETED: TrialState.COMPLETE,
    State.WAITING: TrialState.PRUNED,
    State.PRUNED: TrialState.PRUNED,
    State.INFEASIBLE: TrialState.FAIL,
    State.FAILED: TrialState.FAIL,
    State.CANCELLED: TrialState.FAIL,
}
_EPOCH = datetime(2000, 1, 1)


def frozen(
    trial: Observation,
    space: Mapping[str, BaseDistribution],
    values: Sequence[float] | None,
    system_attrs: dict[str, Any] | None = None,
) -> FrozenTrial:
    """One recorded trial as Optuna sees it.

    A queued trial counts as running, so that samplers avoid its configuration. The value of a pruned trial, or of one
    that is held at a rung, is its last evaluation. A trial whose configuration is not in the space has no parameters.
    """
    state = _OPTUNA_STATES[trial.state]
    if trial.state is State.COMPLETED and values is None:
        state = TrialState.FAIL
    known = values if state is TrialState.COMPLETE else None
    if trial.state in (State.PRUNED, State.WAITING) and trial.curve:
        known = [trial.curve[-1]]
    point = trial.point or {}
    params = {name: point[name] for name in space if name in point}
    return FrozenTrial(
        number=trial.number,
        trial_id=trial.number,
        state=state,
        value=None,
        values=None if known is None else list(known),
        datetime_start=_EPOCH,
        datetime_complete=_EPOCH if state.is_finished() else None,
        params=params,
        distributions={name: space[name] for name in params},
        user_attrs={},
        system_attrs={**(trial.attrs or {}), **(system_attrs or {})},
        intermediate_values=dict(enumerate(trial.curve, start=1)),
    )


class HistoryStorage(BaseStorage):
    """A storage of one study with fixed trials; only the trial that is being asked for can be written."""

    def __init__(self, directions: Sequence[StudyDirection], trials: Sequence[FrozenTrial], next_number: int) -> None:
        self._directions = list(directions)
        self._trials = {t.number: t for t in trials}
        self._next_number = next_number
        self._attrs: dict[str, Any] = {}

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        number = self._next_number
        self._trials[number] = FrozenTrial(number, TrialState.RUNNING, None, _EPOCH, None, {}, {}, {}, {}, {}, number)
        return number

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        trial = self._replaced(trial_id)
        trial.params = {**trial.params, param_name: distribution.to_external_repr(param_value_internal)}
        trial.distributions = {**trial.distributions, param_name: distribution}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        trial = self._replaced(trial_id)
        trial.system_attrs = {**trial.system_attrs, key: value}

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        trial = self._replaced(trial_id)
        trial.user_attrs = {**trial.user_attrs, key: value}

    def _replaced(self, trial_id: int) -> FrozenTrial:
        """Replace the trial by a copy, so that a trial that a caller has read does not change."""
        self._trials[trial_id] = copy(self._trials[trial_id])
        return self._trials[trial_id]

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._attrs = {**self._attrs, key: value}

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._trials[trial_id]

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return trial_number

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = self._trials.values()
        return [t for t in trials if states is None or t.state in states]

    def get_study_id_from_name(self, study_name: str) -> int:
        return STUDY

    def get_study_name_from_id(self, study_id: int) -> str:
        return "history"

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return {}

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._attrs

    def get_all_studies(self) -> list[Any]:
        return []

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        return cast(int, self._read_only())

    def delete_study(self, study_id: int) -> None:
        self._read_only()

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._read_only()

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        return cast(bool, self._read_only())

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._read_only()

    def _read_only(self) -> Any:
        raise TypeError("a history is read-only")
