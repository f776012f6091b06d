"""The track record of a team's predictors: how often a choice was as good as what searching found, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from ..context.context import Context
from ..db.studies import Studies
from ..domain.comparison import PredictorResult
from ..domain.metrics import IN_POINTS
from ..domain.states import VerdictKind
from ..domain.statistics import CONFIDENCE, FEWEST_SEEDS, Estimate
from .comparison import compare

# Older studies are left out, so that the record is made in seconds.
MOST_STUDIES = 1000
# How much the mean variance counts against a study's own.
_PRIOR = 3.0


@dataclass(frozen=True, slots=True)
class Pooled:
    """A mean over studies with its 95 % interval; ``spread`` is the standard deviation of true values among studies."""

    studies: int
    mean: float
    low: float | None
    high: float | None
    spread: float | None


@dataclass(frozen=True, slots=True)
class Record:
    """A predictor's record with one metric.

    ``better`` counts studies in which its choice beat what the search found, ``worse`` those in which the search won.
    ``regret`` is how far its choices are behind the best found, over studies with an interval; in the metric's unit.
    """

    predictor: str
    metric: str
    in_points: bool
    studies: int
    better: int
    same: int
    equal: int
    worse: int
    undecided: int
    top_choice: int
    regret: Pooled | None


def record_of(ctx: Context, team_id: str | None) -> list[Record]:
    """The record of every predictor over the newest confirmed studies; ``team_id`` restricts them to one team."""
    with ctx.db.read() as session:
        studies = Studies(session).confirmed(team_id, MOST_STUDIES)
    found: dict[tuple[str, str], list[PredictorResult]] = {}
    for study in studies:
        for result in compare(ctx, study.id, None).predictors:
            found.setdefault((result.predictor, study.spec.objective.metric), []).append(result)
    records = [_record(name, metric, results) for (name, metric), results in sorted(found.items())]
    return [one for one in records if one.studies]


_JUDGED = (VerdictKind.BETTER, VerdictKind.EQUAL, VerdictKind.WORSE, VerdictKind.UNDECIDED, VerdictKind.SAME)


def _record(predictor: str, metric: str, results: Sequence[PredictorResult]) -> Record:
    judged = [r for r in results if r.verdict_kind in _JUDGED]
    kinds = [r.verdict_kind for r in judged]
    return Record(
        predictor=predictor,
        metric=metric,
        in_points=metric in IN_POINTS,
        studies=len(judged),
        # Verdicts are on the best found against the prediction.
        better=kinds.count(VerdictKind.WORSE),
        same=kinds.count(VerdictKind.SAME),
        equal=kinds.count(VerdictKind.EQUAL),
        worse=kinds.count(VerdictKind.BETTER),
        undecided=kinds.count(VerdictKind.UNDECIDED),
        top_choice=sum(r.rank_of_winner == 1 for r in judged),
        regret=pooled(judged),
    )


def pooled(results: Sequence[PredictorResult]) -> Pooled | None:
    """Mean regret by a random-effects model: studies differ in truth, and each is measured with an error of its own.

    The variance among studies is Paule and Mandel's, the interval Hartung and Knapp's, which holds for few studies
    (Cochrane Handbook, chapter 10). ``None`` without studies that have an interval.
    """
    apart = [r for r in results if r.verdict_kind is not VerdictKind.SAME]
    usable = [(r.regret.mean, _variance(r.regret)) for r in apart if r.regret is not None and r.regret.low is not None]
    # Where the search found nothing better, nothing was measured; its regret is 0 with the usual error.
    usual = median([variance for _, variance in usable]) if usable else 0.0
    usable += [(0.0, usual)] * (len(results) - len(apart))
    if not usable:
        return None
    if len(usable) < FEWEST_SEEDS or usual == 0:
        return Pooled(len(usable), mean(value for value, _ in usable), None, None, None)
    # They take seconds to import.
    import numpy as np
    from statsmodels.stats.meta_analysis import combine_effects

    means, variances = np.array(usable).T
    # From few seeds a variance is itself uncertain, and weights that chase it make intervals too narrow.
    variances = (variances + _PRIOR * variances.mean()) / (1 + _PRIOR)
    found = combine_effects(means, np.maximum(variances, 1e-12), method_re="iterated", use_t=True, alpha=1 - CONFIDENCE)
    low, high = found.conf_int(alpha=1 - CONFIDENCE, use_t=True)[3]
    return Pooled(len(usable), float(found.mean_effect_re), float(low), float(high), float(max(0.0, found.tau2)) ** 0.5)


def _variance(regret: Estimate) -> float:
    """The squared standard error behind an interval: that of the seeds, and that of the test examples."""
    from scipy import stats

    assert regret.low is not None, "asked of intervals only"
    assert regret.high is not None, "asked of intervals only"
    seeds = (regret.spread or 0.0) ** 2 / regret.seeds
    quantile = float(stats.t.ppf(0.5 + regret.confidence / 2, regret.seeds - 1))
    normal = float(stats.norm.ppf(0.5 + regret.confidence / 2))
    examples = max(0.0, ((regret.high - regret.low) / 2) ** 2 - quantile**2 * seeds) / normal**2
    return seeds + examples
