"""Confirmation runs paired by seed: how far a candidate is behind the best found, and the questions that are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..domain.records import Candidate, Study, Trial
from ..domain.states import TrialState
from ..domain.statistics import CONFIDENCE, Estimate, paired_difference
from ..domain.study_spec import Direction, SeedsSpec

BEST = "best"
Scores = Mapping[str, list[float]]


def finished(study: Study, candidate: Candidate, confirmed: Sequence[Trial]) -> dict[int, Trial]:
    """The completed runs of a candidate by seed."""
    metric = study.spec.objective.metric
    return {
        t.seed: t
        for t in confirmed
        if t.candidate == candidate.runs_as and t.state is TrialState.COMPLETED and metric in t.metrics
    }


def scores_of(trials: Mapping[int, Trial], seeds: Sequence[int], scores: Scores) -> list[list[float]] | None:
    """The scores per test example of these runs; ``None`` if some have none, or of other examples."""
    found = [scores.get(trials[seed].id) for seed in seeds]
    if any(s is None for s in found) or len({len(s or []) for s in found}) != 1:
        return None
    return [list(s) for s in found if s is not None]


def regret(
    study: Study, candidate: Candidate, confirmed: Sequence[Trial], scores: Scores, confidence: float = CONFIDENCE
) -> Estimate | None:
    """How far a candidate is behind the best found, over the seeds that both finished; ``None`` if there are none."""
    metric = study.spec.objective.metric
    best, mine = (finished(study, c, confirmed) for c in (study.candidates[0], candidate))
    seeds = sorted(best.keys() & mine.keys())
    if not seeds:
        return None
    first, second = (best, mine) if study.spec.objective.direction is Direction.MAXIMIZE else (mine, best)
    return paired_difference(
        [first[s].metrics[metric] for s in seeds],
        [second[s].metrics[metric] for s in seeds],
        scores_of(first, seeds, scores),
        scores_of(second, seeds, scores),
        confidence,
    )


def primary(study: Study) -> str | None:
    """The candidate of the primary question: the guideline's choice, or else the first after the best found."""
    names = [c.name for c in study.candidates if c.name != BEST]
    if "guideline" in names:
        return "guideline"
    return names[0] if names else None


def is_primary(study: Study, candidate: str) -> bool:
    """Whether a candidate's runs are those of the primary question."""
    runs = {c.name: c.runs_as for c in study.candidates}
    return runs.get(candidate, candidate) in (BEST, runs.get(primary(study) or ""))


def secondary_count(study: Study) -> int:
    """How many further questions there are: different runs beside those of the best found and the primary one."""
    asked = primary(study)
    runs = {c.name: c.runs_as for c in study.candidates}
    return len({r for r in runs.values() if r not in (BEST, runs.get(asked or ""))})


def looks(seeds: int | SeedsSpec) -> list[int]:
    """The numbers of seeds at which the primary question is looked at, ascending."""
    if isinstance(seeds, int):
        return [seeds]
    count = min(4, seeds.most - seeds.first + 1)
    if count < 2:
        return [seeds.most]
    step = (seeds.most - seeds.first) / (count - 1)
    return [round(seeds.first + k * step) for k in range(count)]


def confidence_at(seeds: int | SeedsSpec, reached: int) -> float:
    """The confidence of the interval at the look with ``reached`` seeds.

    The error probability of 5 % is divided over the looks in proportion to their seeds (Bonferroni): so the chance that
    any look errs is at most 5 %, and the later looks, which see more, get more of it.
    """
    planned = looks(seeds)
    now = next((n for n in planned if n >= reached), planned[-1])
    return 1 - (1 - CONFIDENCE) * now / sum(planned)


def adjusted(confidence: float, questions: int) -> float:
    """The confidence of each of several intervals that hold together with ``confidence`` (Bonferroni)."""
    return 1 - (1 - confidence) / max(1, questions)
