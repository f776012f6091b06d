"""A study's predictions, and the measurement that one of them may wait for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cdka

from ..context.context import Context
from ..db.predictions import Predictions
from ..db.studies import Studies
from ..db.trials import Trials
from ..domain.plan import Plan
from ..domain.records import NewTrial, Ranking, RankingState, StoredPrediction, Study, Trial
from ..domain.states import TRIAL_ENDED, TrialPhase
from ..domain.study_spec import StudySpec
from ..errors import Fault, InvalidRequest
from .structures import candidates_for, group_budgets, group_candidates, module_shapes, rank_groups, shapes_by_group

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
        predictions = Predictions(session).of_study(study_id)
        measured = Predictions(session).of_groups(study_id) if study.plan.groups else {}
        measurement = Trials(session).numbered(study_id, NUMBER) if MEASURED not in predictions else None
    return rankings(study.spec, study.plan, predictions, measurement, measured)


def rankings(
    spec: StudySpec,
    plan: Plan,
    predictions: Mapping[str, Sequence[StoredPrediction]],
    measurement: Trial | None = None,
    measured: Mapping[str, Mapping[str, Sequence[StoredPrediction]]] | None = None,
) -> list[Ranking]:
    """The rankings of every predictor that a study names, pending ones included.

    ``measured`` has the rankings of groups of layers that runners have made, by predictor and group.
    """
    found = []
    for name in spec.compare.predictors:
        if name in predictions:
            own = {g: list(ranking) for g, ranking in (measured or {}).get(name, {}).items()}
            if name in cdka.FROM_BUDGET:
                own = rank_groups(plan, spec.search_space, name)
            found.append(Ranking(name, RankingState.READY, None, list(predictions[name]), own))
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
    if shapes_by_group(plan):
        limits = group_budgets(plan)
        params["groups"] = {
            name: {"max_parameters": limits[name], "candidates": [list(c.structure) for c in own]}
            for name, own in group_candidates(plan, spec.search_space).items()
            if own
        }
    if spec.search_space.batch_size is not None:
        params["batch_size"] = min(spec.search_space.ends("batch_size"))
    return NewTrial(NUMBER, TrialPhase.MEASUREMENT, "full", params, 0, spec.search.seed)


def measured_ranking(study: Study, trial: Trial, entries: Sequence[Mapping[str, Any]]) -> list[StoredPrediction]:
    """A runner's measurement as a ranking to store.

    Raises:
        InvalidRequest: it does not cover the configurations that were asked for.
    """
    # Runners of before groups were measured send no such entries.
    asked = {(None, *sizes) for sizes in trial.params["candidates"]}
    if any(e.get("group") is not None for e in entries):
        asked |= {(g, *sizes) for g, own in trial.params.get("groups", {}).items() for sizes in own["candidates"]}
    if {(e.get("group"), e["r1"], e["r2"], e["r"]) for e in entries} != asked or len(entries) != len(asked):
        fault = Fault(
            "#/predictions", f"give one score for each of the {len(asked)} configurations in the trial's params"
        )
        raise InvalidRequest("a completed measurement must contain the score of every configuration", [fault])
    shapes: dict[str | None, list[cdka.ModuleShape]] = {None: module_shapes(study.plan)}
    shapes.update(shapes_by_group(study.plan))
    return [
        StoredPrediction(**e, parameters=cdka.count_parameters(shapes[e.get("group")], e["r1"], e["r2"], e["r"]))
        for e in entries
    ]
