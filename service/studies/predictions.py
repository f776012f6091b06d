"""A study's predictions, and the measurement that one of them may wait for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cdka

from ..context.context import Context
from ..db.studies import Studies
from ..db.trials import Trials
from ..domain.plan import Plan
from ..domain.records import NewTrial, Ranking, RankingState, StoredPrediction, Study, Trial
from ..domain.states import TRIAL_ENDED, TrialPhase
from ..domain.study_spec import StudySpec
from ..errors import Fault, InvalidRequest
from .structures import candidates_for, module_shapes

MEASURED = "measured"
# Before trial 0, so that the search's numbers are the same with and without it.
NUMBER = -1
BATCHES = 4


def get_predictions(ctx: Context, study_id: str, team_id: str | None) -> list[Ranking]:
    """A study's rankings by predictor, in the order in which it names them.

    Raises:
        NotFound: there is no such study in this team.
    """
    with ctx.db.read() as session:
        studies = Studies(session)
        study = studies.get(study_id, team_id)
        predictions = studies.predictions(study_id)
        measurement = Trials(session).numbered(study_id, NUMBER) if MEASURED not in predictions else None
    return rankings(study.spec, predictions, measurement)


def rankings(
    spec: StudySpec, predictions: Mapping[str, Sequence[StoredPrediction]], measurement: Trial | None = None
) -> list[Ranking]:
    """The rankings of every predictor that a study names, pending ones included."""
    found = []
    for name in spec.compare.predictors:
        if name in predictions:
            found.append(Ranking(name, RankingState.READY, None, list(predictions[name])))
        elif measurement is not None and measurement.state in TRIAL_ENDED:
            reason = measurement.failure.message if measurement.failure else f"the measurement was {measurement.state}"
            found.append(Ranking(name, RankingState.FAILED, reason, []))
        else:
            found.append(Ranking(name, RankingState.PENDING, "a runner measures it before the search", []))
    return found


def measurement(spec: StudySpec, plan: Plan) -> NewTrial | None:
    """The trial that measures gradients for a new study, if the study names ``measured``."""
    if MEASURED not in spec.compare.predictors:
        return None
    candidates = [c.structure for c in candidates_for(plan, spec.search_space)]
    params: dict[str, Any] = {
        "batches": BATCHES,
        "max_parameters": plan.max_parameters,
        "candidates": [list(sizes) for sizes in sorted(candidates)],
    }
    if spec.search_space.batch_size is not None:
        params["batch_size"] = min(spec.search_space.ends("batch_size"))
    return NewTrial(NUMBER, TrialPhase.MEASUREMENT, "full", params, 0, spec.search.seed)


def measured_ranking(study: Study, trial: Trial, entries: Sequence[Mapping[str, Any]]) -> list[StoredPrediction]:
    """A runner's measurement as a ranking to store.

    Raises:
        InvalidRequest: it does not cover the configurations that were asked for.
    """
    asked = {tuple(sizes) for sizes in trial.params["candidates"]}
    if {(e["r1"], e["r2"], e["r"]) for e in entries} != asked or len(entries) != len(asked):
        fault = Fault(
            "#/predictions", f"give one score for each of the {len(asked)} configurations in the trial's params"
        )
        raise InvalidRequest("a completed measurement must contain the score of every configuration", [fault])
    shapes = module_shapes(study.plan)
    return [StoredPrediction(**e, parameters=cdka.count_parameters(shapes, e["r1"], e["r2"], e["r"])) for e in entries]
