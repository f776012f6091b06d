"""What a comparison says in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..domain.comparison import CandidateResult
from ..domain.metrics import IN_POINTS
from ..domain.records import StoredPrediction, Study, Trial
from ..domain.search_space import OPTIONAL
from ..domain.states import StudyPhase, StudyState, TrialState, VerdictKind
from ..domain.statistics import FEWEST_SEEDS, Estimate
from ..domain.study_spec import SeedsSpec
from ..domain.verdicts import Verdict, judge, margin_of, seeds_to_settle
from ..studies.differences import BEST, is_primary, looks, primary, secondary_count


def verdict_on(
    who: str, candidate: str, regret: Estimate | None, study: Study, confirmed: Sequence[Trial], best: float | None
) -> Verdict:
    """What a difference says, in words. With too few seeds it says so instead of a verdict."""
    if any(c.name == candidate and c.runs_as == BEST for c in study.candidates):
        return Verdict(VerdictKind.SAME, f"the search found nothing better than {who}")
    if regret is None:
        if study.phase is StudyPhase.CONFIRMATION or study.spec.compare.first_seeds:
            return Verdict(VerdictKind.PENDING, "not confirmed yet")
        return Verdict(VerdictKind.NONE, "not confirmed: compare.seeds is 0")
    told = Told.of(study)
    margin = margin_of(study.spec, best)
    kind = judge(regret, margin)
    shares = study.spec.compare.learning_rate == "shared" and not candidate.startswith(("best_", "found_"))
    rate = " at the winner's learning rate" if shares else ""
    number = told.difference(regret.mean)
    if kind is VerdictKind.TOO_FEW_SEEDS or regret.low is None or regret.high is None:
        count = f"{regret.seeds} seed{'s' * (regret.seeds != 1)}"
        return Verdict(kind, f"too few seeds for a verdict: {number} over {count}{rate}", margin)
    interval = f"95 % interval{_holding(study, candidate)}"
    numbers = f"{number}, {interval} {told.bare(regret.low)} to {told.bare(regret.high)}"
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
    seconds = seconds_of_seeds(study, candidate, confirmed, seeds - regret.seeds)
    cost = "" if seconds is None else f", {duration(seconds)} of training"
    more = seeds - regret.seeds
    settles = f"{more} more seed{'s' * (more != 1)} of both would settle it with a probability of 80 %{cost}"
    return Verdict(kind, f"{open_}; {settles}", margin, seeds, seconds)


def answer_of(study: Study, results: Sequence[CandidateResult]) -> str:
    """The answer to the primary question, as a sentence of its own."""
    asked = next((r for r in results if r.name == primary(study)), None)
    if asked is None or asked.verdict is None:
        if study.state is StudyState.COMPLETED and not study.spec.compare.first_seeds:
            return "Nothing was confirmed, because compare.seeds is 0: the best trial may only have been lucky."
        return ""
    if asked.verdict.kind in (VerdictKind.PENDING, VerdictKind.NONE):
        return ""
    sentence = asked.verdict.sentence
    return f"{sentence[0].upper()}{sentence[1:]}."


def _holding(study: Study, candidate: str) -> str:
    """Over what an interval holds besides its own question."""
    over = []
    if isinstance(study.spec.compare.seeds, SeedsSpec) and len(looks(study.spec.compare.seeds)) > 1:
        over.append("all looks")
    if not is_primary(study, candidate) and (others := secondary_count(study)) > 1:
        over.append(f"the {others} further candidates")
    return f" over {' and '.join(over)}" if over else ""


@dataclass(frozen=True, slots=True)
class Told:
    """How differences of a metric are told: shares in points (hundredths), others in their own unit."""

    metric: str
    in_points: bool

    @classmethod
    def of(cls, study: Study) -> Told:
        """Of a study's objective."""
        metric = study.spec.objective.metric
        return cls(metric, metric in IN_POINTS)

    def value(self, value: float) -> str:
        """A value of the metric."""
        return f"{value:.4f}" if self.in_points else f"{value:.4g}"

    def bare(self, value: float) -> str:
        """A difference without its unit."""
        return f"{value * 100:+.1f}" if self.in_points else f"{value:+.4g}"

    def difference(self, value: float) -> str:
        """A difference with its unit."""
        return f"{self.bare(value)}{' points' if self.in_points else f' {self.metric}'}"

    def size(self, value: float) -> str:
        """An amount without a sign."""
        return f"{value * 100:.3g} points" if self.in_points else f"{value:.3g} {self.metric}"


def seconds_of_seeds(study: Study, candidate: str, confirmed: Sequence[Trial], seeds: int) -> float | None:
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


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def unheld_notes(count: int) -> list[str]:
    """Trials that successive halving could not hold."""
    if not count:
        return []
    were, they = ("trials were", "they") if count != 1 else ("trial was", "it")
    why = f"because {they} had no checkpoint to continue from"
    advice = "all runners must reach one artifact store (CDKA_ARTIFACTS_URL)"
    return [f"{count} {were} stopped for good at a rung instead of being held, {why}: {advice}."]


def unmeasured_notes(study: Study, predictions: Mapping[str, Sequence[StoredPrediction]]) -> list[str]:
    """Predictors without a ranking."""
    missing = [name for name in study.spec.compare.predictors if name not in predictions]
    if study.phase is StudyPhase.MEASUREMENT:
        return [f"The predictor {name} is being measured." for name in missing]
    return [f"The predictor {name} could not be measured and is left out; its predictions say why." for name in missing]


def notes_of(study: Study, results: Sequence[CandidateResult]) -> list[str]:
    """How the numbers were made."""
    compare = study.spec.compare
    notes = []
    several = any(r.name.startswith(("best_", "found_")) for r in results)
    who = "All candidates but those that the search found" if several else "All candidates"
    if compare.first_seeds:
        notes.append(
            "Confirmation runs are judged on the test split, which the search never saw, with seeds it never used."
        )
        if isinstance(compare.seeds, SeedsSpec):
            reached = max((r.planned for r in results), default=0)
            planned = ", ".join(str(n) for n in looks(compare.seeds))
            notes.append(
                f"Seeds are added until the primary question is decided, with looks at {planned}; {reached} so far."
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
    if 0 < compare.first_seeds < FEWEST_SEEDS:
        notes.append(
            f"{compare.first_seeds} seeds only illustrate: no verdict is drawn from fewer than {FEWEST_SEEDS}."
        )
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
