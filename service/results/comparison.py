"""Compare the best found with predictions and baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..context.context import Context
from ..db.predictions import Predictions
from ..db.studies import Studies
from ..db.trial_columns import TrialColumns
from ..db.trials import Trials
from ..domain.comparison import CandidateResult, Comparison, PredictorResult, Selection
from ..domain.records import Candidate, Observation, StoredPrediction, Study, Trial
from ..domain.states import TrialPhase, TrialState
from ..domain.statistics import Chance, chance_of_more, estimate, spearman
from ..domain.structure import SIZES, Structure, uniform
from ..domain.study_spec import Direction
from ..domain.verdicts import Verdict
from ..search.coordinates import CDKA, METHOD, method_of
from ..search.pruners import Halving
from ..studies.differences import (
    BEST,
    Scores,
    adjusted,
    confidence_at,
    finished,
    is_primary,
    primary,
    regret,
    scores_of,
    secondary_count,
)
from ..studies.recheck import Winner, winner
from .fairness import flags_of
from .sentences import Told, answer_of, notes_of, unheld_notes, unmeasured_notes, verdict_on


def compare(ctx: Context, study_id: str, team_id: str | None) -> Comparison:
    """The current comparison; pending parts are null.

    Raises:
        NotFound: there is no such study in this team.
    """
    with ctx.db.read() as session:
        study = Studies(session).get(study_id, team_id)
    return ctx.recent.get(("comparison", study_id, study.version), lambda: _compare(ctx, study))


def _compare(ctx: Context, study: Study) -> Comparison:
    with ctx.db.read() as session:
        confirmed = Trials(session).of_study(study.id, TrialPhase.CONFIRMATION)
        repeated = Trials(session).of_study(study.id, TrialPhase.RECHECK)
        predictions = Predictions(session).of_study(study.id)
        scores = TrialColumns(session).scores(study.id)
        # Where trials can be held, only those without a checkpoint are stopped for good.
        unheld = Trials(session).stopped_for_good(study.id) if Halving.of(study.spec) is not None else 0
    return build_comparison(study, searched(ctx, study.id), confirmed, predictions, scores, repeated, unheld)


def searched(ctx: Context, study_id: str) -> list[Observation]:
    """The search trials of a study, by number, from the shared history."""
    return ctx.histories.snapshot(ctx.db, study_id).history.observations()


def build_comparison(
    study: Study,
    searched: Sequence[Observation],
    confirmed: Sequence[Trial],
    predictions: Mapping[str, Sequence[StoredPrediction]],
    scores: Mapping[str, list[float]],
    repeated: Sequence[Trial] = (),
    unheld: int = 0,
) -> Comparison:
    """The comparison, as a pure function of records.

    ``repeated`` are the trials of the recheck. ``unheld`` counts trials that successive halving could not hold.
    """
    # Runs of a confirmation before the study was extended belong to no candidate any more.
    confirmed = [t for t in confirmed if t.candidate is not None]
    objective = study.spec.objective
    won = winner(searched, repeated, study.spec)
    best = None if won is None else won.trial
    results = [_candidate(study, c, confirmed, scores) for c in study.candidates]
    mean = results[0].estimate.mean if results and results[0].estimate else None
    for k, result in enumerate(results):
        if result.name != BEST:
            said = verdict_on(_who(result.name, result.title), result.name, result.regret, study, confirmed, mean)
            results[k] = replace(result, verdict=said)
    by_name = {r.name: r for r in results}
    observed = _observed(study, searched) if predictions else []
    predictors = []
    for name, ranking in predictions.items():
        own = by_name.get(name)
        said = verdict_on(_who(name, f"{name}'s choice"), name, own.regret if own else None, study, confirmed, mean)
        predictors.append(_predictor(study, name, ranking, observed, best, own, said))
    return Comparison(
        study_id=study.id,
        study=study.name,
        state=study.state,
        phase=study.phase,
        metric=objective.metric,
        direction=objective.direction,
        split="test",
        budget=study.plan.max_parameters,
        learning_rate_rule=study.spec.compare.learning_rate,
        best_trial=None if won is None else _best(won, objective.metric),
        candidates=results,
        predictors=predictors,
        notes=[*notes_of(study, results), *unheld_notes(unheld), *unmeasured_notes(study, predictions)],
        primary=primary(study),
        answer=answer_of(study, results),
        selection=_selection(study, won, results[0] if results else None),
    )


def _best(won: Winner, metric: str) -> dict[str, Any]:
    trial = won.trial
    found = {"number": trial.number, "params": trial.params, "value": trial.metrics[metric], "split": "validation"}
    return {**found, "runs": len(won.values), "mean": won.mean}


def _candidate(study: Study, candidate: Candidate, confirmed: Sequence[Trial], scores: Scores) -> CandidateResult:
    metric = study.spec.objective.metric
    mine, best = finished(study, candidate, confirmed), finished(study, study.candidates[0], confirmed)
    values = [mine[seed].metrics[metric] for seed in sorted(mine)]
    params = next(iter(mine.values())).params if mine else candidate.params
    validation = [found for seed in sorted(mine) if (found := _validation(mine[seed], metric)) is not None]
    taken = [float(t.resources["seconds"]) for t in mine.values() if "seconds" in t.resources]
    runs = {t.seed for t in confirmed if t.candidate == candidate.runs_as}
    is_best = candidate.name == BEST
    return CandidateResult(
        name=candidate.name,
        title=candidate.title,
        method=candidate.method,
        params=params,
        parameters=candidate.parameters,
        share_of_budget=candidate.parameters / study.plan.max_parameters,
        finished=len(mine),
        planned=len(runs) or study.spec.compare.first_seeds,
        values=values,
        estimate=estimate(values, scores_of(mine, sorted(mine), scores)) if values else None,
        regret=regret(study, candidate, confirmed, scores, confidence_of(study, candidate.name, confirmed)),
        flags=flags_of(study, candidate, mine, best, confirmed),
        chance=None if is_best else _chance(study, best, mine),
        validation=estimate(validation) if validation else None,
        seconds=sum(taken) / len(taken) if taken else None,
    )


def confidence_of(study: Study, candidate: str, confirmed: Sequence[Trial]) -> float:
    """The confidence of a candidate's interval: the primary question's own, or that of several that hold together."""
    reached = len({t.seed for t in confirmed}) or study.spec.compare.first_seeds
    confidence = confidence_at(study.spec.compare.seeds, reached)
    if is_primary(study, candidate):
        return confidence
    return adjusted(confidence, secondary_count(study))


def _validation(trial: Trial, metric: str) -> float | None:
    """What a confirmation run reached on the validation split; runs of earlier releases do not say."""
    found = trial.resources.get("validation")
    value = found.get(metric) if isinstance(found, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _chance(study: Study, best: Mapping[int, Trial], mine: Mapping[int, Trial]) -> Chance | None:
    metric, maximise = study.spec.objective.metric, study.spec.objective.direction is Direction.MAXIMIZE
    sign = 1.0 if maximise else -1.0
    first, second = ([sign * t.metrics[metric] for t in runs.values()] for runs in (best, mine))
    return chance_of_more(first, second)


def is_confirmed(study: Study, params: Mapping[str, Any]) -> bool:
    """Whether this configuration is the one that was confirmed; an extended search may have found another."""
    if not study.candidates:
        return False
    return {name: value for name, value in params.items() if name != METHOD} == study.candidates[0].params


def _selection(study: Study, won: Winner | None, result: CandidateResult | None) -> Selection | None:
    """The winner's value when it was chosen beside what fresh seeds reach."""
    if won is None or result is None or result.estimate is None or not is_confirmed(study, won.trial.params):
        return None
    told = Told.of(study)
    chosen, fresh, test = won.values[0], result.validation, result.estimate
    sentence = f"The winner had {told.value(chosen)} on validation in the trial that put it ahead"
    if len(won.values) > 1:
        sentence += f" and {told.value(won.mean)} as the mean of {len(won.values)} seeds"
    optimism = None
    if fresh is not None:
        sign = 1.0 if study.spec.objective.direction is Direction.MAXIMIZE else -1.0
        optimism = sign * (chosen - fresh.mean)
        sentence += f"; with fresh seeds it reaches {told.value(fresh.mean)} there"
        if optimism > 0:
            sentence += f", so {told.size(optimism)} of the first value were the luck of being chosen"
    sentence += f". On test it reaches {told.value(test.mean)}."
    return Selection(chosen, len(won.values), won.mean, fresh, test, optimism, sentence)


def _predictor(
    study: Study,
    name: str,
    ranking: Sequence[StoredPrediction],
    observed: Sequence[tuple[Structure, float]],
    best: Observation | None,
    result: CandidateResult | None,
    verdict: Verdict,
) -> PredictorResult:
    scores = {p.structure: p.score for p in ranking}
    ranks = {p.structure: k + 1 for k, p in enumerate(ranking)}
    compared = [(scores[structure], value) for structure, value in observed if structure in scores]
    top = ranking[0]
    chosen = (uniform(result.params) if result else None) or top.structure
    return PredictorResult(
        predictor=name,
        choice={
            **dict(zip(SIZES, chosen, strict=True)),
            "parameters": result.parameters if result else top.parameters,
        },
        reason=top.reason,
        regret=result.regret if result else None,
        rank_of_winner=ranks.get(s) if best and (s := _structure(study, best)) else None,
        ranked=len(ranking),
        spearman=spearman([p for p, _ in compared], [o for _, o in compared]) if compared else None,
        compared_trials=len(compared),
        verdict=verdict.sentence,
        verdict_kind=verdict.kind,
        seeds_to_settle=verdict.seeds,
    )


def _who(name: str, title: str) -> str:
    """A candidate in a sentence."""
    return "the guideline" if name == "guideline" else title


def _observed(study: Study, searched: Sequence[Observation]) -> list[tuple[Structure, float]]:
    """Structure and value (larger is better) of each completed trial whose structure rankings may have."""
    metric = study.spec.objective.metric
    sign = 1.0 if study.spec.objective.direction is Direction.MAXIMIZE else -1.0
    done = [t for t in searched if t.state is TrialState.COMPLETED and metric in t.metrics]
    if study.plan.targets:
        return [(s, sign * t.metrics[metric]) for t in done if (s := _structure(study, t)) is not None]
    mine = [t for t in done if t.params.get(METHOD, CDKA) == CDKA]
    return [(s, sign * t.metrics[metric]) for t in mine if (s := uniform(t.params)) is not None]


def _structure(study: Study, trial: Observation) -> Structure | None:
    """A CDKA trial's structure as rankings have it; ``None`` for other methods."""
    return study.plan.ranked(trial.params) if method_of(trial.params) == CDKA else None
