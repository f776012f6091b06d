"""Compare the best found with predictions and baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..context.context import Context
from ..db.studies import Studies
from ..db.trials import Trials
from ..domain.comparison import CandidateResult, Comparison, PredictorResult
from ..domain.metrics import IN_POINTS
from ..domain.records import Candidate, Observation, StoredPrediction, Study, Trial
from ..domain.search_space import OPTIONAL
from ..domain.states import StudyPhase, StudyState, TrialPhase, TrialState, VerdictKind
from ..domain.statistics import FEWEST_SEEDS, Estimate, estimate, paired_difference, spearman
from ..domain.study_spec import Direction
from ..domain.verdicts import Verdict, judge, seeds_to_settle
from ..search.coordinates import CDKA, method_of
from ..search.pruners import Halving
from ..studies.recheck import Winner, winner


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
        predictions = Studies(session).predictions(study.id)
        scores = Trials(session).scores(study.id)
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
    objective = study.spec.objective
    won = winner(searched, repeated, study.spec)
    best = None if won is None else won.trial
    results = [_candidate(study, c, confirmed, scores) for c in study.candidates]
    mean = results[0].estimate.mean if results and results[0].estimate else None
    for k, result in enumerate(results):
        if result.name != "best":
            said = _verdict(_who(result.name, result.title), result.name, result.regret, study, confirmed, mean)
            results[k] = replace(result, verdict=said)
    by_name = {r.name: r for r in results}
    predictors = []
    for name, ranking in predictions.items():
        own = by_name.get(name)
        said = _verdict(_who(name, f"{name}'s choice"), name, own.regret if own else None, study, confirmed, mean)
        predictors.append(_predictor(study, name, ranking, searched, best, own, said))
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
        notes=[*_notes(study, results), *_unheld(unheld), *_unmeasured(study, predictions)],
    )


def _best(won: Winner, metric: str) -> dict[str, Any]:
    trial = won.trial
    found = {"number": trial.number, "params": trial.params, "value": trial.metrics[metric], "split": "validation"}
    return {**found, "runs": len(won.values), "mean": won.mean}


def _finished(study: Study, candidate: Candidate, confirmed: Sequence[Trial]) -> dict[int, Trial]:
    metric = study.spec.objective.metric
    return {
        t.seed: t
        for t in confirmed
        if t.candidate == candidate.runs_as and t.state is TrialState.COMPLETED and metric in t.metrics
    }


def _candidate(
    study: Study, candidate: Candidate, confirmed: Sequence[Trial], scores: Mapping[str, list[float]]
) -> CandidateResult:
    metric = study.spec.objective.metric
    mine = _finished(study, candidate, confirmed)
    values = [mine[seed].metrics[metric] for seed in sorted(mine)]
    params = next(iter(mine.values())).params if mine else candidate.params
    share = candidate.parameters / study.plan.max_parameters
    flags = []
    if share < study.plan.min_fill:
        flags.append(f"uses only {share:.0%} of the budget (min_fill is {study.plan.min_fill:.0%})")
    if share > 1:
        flags.append(f"is over the budget ({share:.0%})")
    failed = [t for t in confirmed if t.candidate == candidate.runs_as and t.state in _UNUSABLE]
    if failed:
        flags.append(f"{len(failed)} of {study.spec.compare.seeds} seeds did not finish")
    if candidate.runs_as != candidate.name:
        flags.append(f"identical with {candidate.runs_as!r}, whose runs stand for both")
    return CandidateResult(
        name=candidate.name,
        title=candidate.title,
        method=candidate.method,
        params=params,
        parameters=candidate.parameters,
        share_of_budget=share,
        finished=len(mine),
        planned=study.spec.compare.seeds,
        values=values,
        estimate=estimate(values, _scores(mine, sorted(mine), scores)) if values else None,
        regret=_regret(study, candidate, confirmed, scores),
        flags=flags,
    )


_UNUSABLE = (TrialState.FAILED, TrialState.INFEASIBLE, TrialState.CANCELLED)


def _scores(
    trials: Mapping[int, Trial], seeds: Sequence[int], scores: Mapping[str, list[float]]
) -> list[list[float]] | None:
    found = [scores.get(trials[seed].id) for seed in seeds]
    if any(s is None for s in found) or len({len(s or []) for s in found}) != 1:
        return None
    return [list(s) for s in found if s is not None]


def _regret(
    study: Study, candidate: Candidate, confirmed: Sequence[Trial], scores: Mapping[str, list[float]]
) -> Estimate | None:
    """How far a candidate is behind the best found, over the seeds that both finished."""
    metric = study.spec.objective.metric
    best, mine = (_finished(study, c, confirmed) for c in (study.candidates[0], candidate))
    seeds = sorted(best.keys() & mine.keys())
    if not seeds:
        return None
    first, second = (best, mine) if study.spec.objective.direction is Direction.MAXIMIZE else (mine, best)
    return paired_difference(
        [first[s].metrics[metric] for s in seeds],
        [second[s].metrics[metric] for s in seeds],
        _scores(first, seeds, scores),
        _scores(second, seeds, scores),
    )


def _predictor(
    study: Study,
    name: str,
    ranking: Sequence[StoredPrediction],
    searched: Sequence[Observation],
    best: Observation | None,
    result: CandidateResult | None,
    verdict: Verdict,
) -> PredictorResult:
    scores = {p.structure: p.score for p in ranking}
    ranks = {p.structure: k + 1 for k, p in enumerate(ranking)}
    metric = study.spec.objective.metric
    sign = 1.0 if study.spec.objective.direction is Direction.MAXIMIZE else -1.0
    compared = [
        (scores[s], sign * t.metrics[metric])
        for t in searched
        if t.state is TrialState.COMPLETED and (s := _structure(t)) is not None and s in scores and metric in t.metrics
    ]
    top = ranking[0]
    return PredictorResult(
        predictor=name,
        choice={"r1": top.r1, "r2": top.r2, "r": top.r, "parameters": top.parameters},
        reason=top.reason,
        regret=result.regret if result else None,
        rank_of_winner=ranks.get(s) if best and (s := _structure(best)) else None,
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


def _structure(trial: Observation) -> tuple[int, int, int] | None:
    """A CDKA trial's structure; ``None`` for other methods."""
    if method_of(trial.params) != CDKA:
        return None
    return trial.params["r1"], trial.params["r2"], trial.params["r"]


def _verdict(
    who: str, candidate: str, regret: Estimate | None, study: Study, confirmed: Sequence[Trial], best: float | None
) -> Verdict:
    """What a difference says, in words. With too few seeds it says so instead of a verdict."""
    if any(c.name == candidate and c.runs_as == "best" for c in study.candidates):
        return Verdict(VerdictKind.SAME, f"the search found nothing better than {who}")
    if regret is None:
        if study.phase is StudyPhase.CONFIRMATION or study.spec.compare.seeds:
            return Verdict(VerdictKind.PENDING, "not confirmed yet")
        return Verdict(VerdictKind.NONE, "not confirmed: compare.seeds is 0")
    told = _Told.of(study)
    margin = told.margin(study.spec.compare.margin, best)
    kind = judge(regret, margin)
    shares = study.spec.compare.learning_rate == "shared" and not candidate.startswith("best_")
    rate = " at the winner's learning rate" if shares else ""
    number = told.difference(regret.mean)
    if kind is VerdictKind.TOO_FEW_SEEDS or regret.low is None or regret.high is None:
        count = f"{regret.seeds} seed{'s' * (regret.seeds != 1)}"
        return Verdict(kind, f"too few seeds for a verdict: {number} over {count}{rate}", margin)
    numbers = f"{number}, 95 % interval {told.bare(regret.low)} to {told.bare(regret.high)}"
    if kind is VerdictKind.EQUAL:
        within = f"practically equal{rate} (within {told.size(margin)})"
        return Verdict(kind, f"searching and {who} are {within}: {numbers}", margin)
    if kind is VerdictKind.BETTER:
        return Verdict(kind, f"searching beat {who}{rate}: {numbers}", margin)
    if kind is VerdictKind.WORSE:
        return Verdict(kind, f"{who} beat what the search found{rate}: {numbers}", margin)
    seeds = seeds_to_settle(regret, margin)
    open_ = f"no evidence that searching beat {who}{rate}: {numbers}"
    if seeds is None:
        settles = "no number of seeds up to 1,000 is likely to settle it; a larger test split or a wider margin may"
        return Verdict(kind, f"{open_}; {settles}", margin)
    seconds = _seconds(study, candidate, confirmed, seeds - regret.seeds)
    cost = "" if seconds is None else f", {_duration(seconds)} of training"
    more = seeds - regret.seeds
    settles = f"{more} more seed{'s' * (more != 1)} of both would settle it with a probability of 80 %{cost}"
    return Verdict(kind, f"{open_}; {settles}", margin, seeds, seconds)


@dataclass(frozen=True, slots=True)
class _Told:
    """How differences of a metric are told: shares in points (hundredths), others in their own unit."""

    metric: str
    in_points: bool

    @classmethod
    def of(cls, study: Study) -> _Told:
        metric = study.spec.objective.metric
        return cls(metric, metric in IN_POINTS)

    def margin(self, given: float | None, best: float | None) -> float:
        """The margin in the metric's own unit: half a point, or 1 % of the best found, unless one is given."""
        if self.in_points:
            return (0.5 if given is None else given) / 100
        return abs(best or 0.0) / 100 if given is None else given

    def bare(self, value: float) -> str:
        return f"{value * 100:+.1f}" if self.in_points else f"{value:+.4g}"

    def difference(self, value: float) -> str:
        return f"{self.bare(value)}{' points' if self.in_points else f' {self.metric}'}"

    def size(self, value: float) -> str:
        return f"{value * 100:.3g} points" if self.in_points else f"{value:.3g} {self.metric}"


def _seconds(study: Study, candidate: str, confirmed: Sequence[Trial], seeds: int) -> float | None:
    """What further seeds of the best found and of a candidate would take, as those before took."""
    runs = {c.name: c.runs_as for c in study.candidates}
    total = 0.0
    for name in ("best", runs.get(candidate, candidate)):
        taken = [float(t.resources["seconds"]) for t in confirmed if _counts(t, name)]
        if not taken:
            return None
        total += sum(taken) / len(taken) * seeds
    return total


def _counts(trial: Trial, candidate: str) -> bool:
    return trial.candidate == candidate and trial.state is TrialState.COMPLETED and "seconds" in trial.resources


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _unheld(count: int) -> list[str]:
    if not count:
        return []
    were, they = ("trials were", "they") if count != 1 else ("trial was", "it")
    why = f"because {they} had no checkpoint to continue from"
    advice = "all runners must reach one artifact store (CDKA_ARTIFACTS_URL)"
    return [f"{count} {were} stopped for good at a rung instead of being held, {why}: {advice}."]


def _unmeasured(study: Study, predictions: Mapping[str, Sequence[StoredPrediction]]) -> list[str]:
    missing = [name for name in study.spec.compare.predictors if name not in predictions]
    if study.phase is StudyPhase.MEASUREMENT:
        return [f"The predictor {name} is being measured." for name in missing]
    return [f"The predictor {name} could not be measured and is left out; its predictions say why." for name in missing]


def _notes(study: Study, results: Sequence[CandidateResult]) -> list[str]:
    compare = study.spec.compare
    notes = []
    several = any(r.name.startswith("best_") for r in results)
    who = "All candidates but the best of other methods" if several else "All candidates"
    if compare.seeds:
        notes.append(
            "Confirmation runs are judged on the test split, which the search never saw, with seeds it never used."
        )
        if compare.learning_rate == "shared":
            notes.append(f"{who} run at the winner's learning rate, which favours the winner.")
        else:
            tuned = "was" if any(r.finished for r in results) else "will be"
            trials = f"a search of {compare.tuning_trials} trials of its own"
            notes.append(f"Every candidate's learning rate {tuned} tuned in {trials}.")
    shared = [name for name in OPTIONAL if getattr(study.spec.search_space, name) is not None]
    if shared and results:
        found = {name: results[0].params[name] for name in shared if name in results[0].params}
        values = ", ".join(f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in found.items())
        notes.append(f"{who} run with what the search chose for its winner, which may favour it: {values}.")
    if 0 < compare.seeds < FEWEST_SEEDS:
        notes.append(f"{compare.seeds} seeds only illustrate: no verdict is drawn from fewer than {FEWEST_SEEDS}.")
    if study.planned < study.spec.search.trials:
        notes.append(
            f"The space holds {study.planned} configurations; {study.spec.search.trials} trials were asked for."
        )
    if study.reason and study.state is StudyState.COMPLETED:
        notes.append(f"The search ended early: {study.reason}.")
    over = [r for r in results if r.share_of_budget < study.plan.min_fill]
    if over:
        notes.append("Candidates that use less of the budget than min_fill are flagged: size may explain them.")
    return notes
