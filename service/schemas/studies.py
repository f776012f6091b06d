"""Studies and predictions on the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from ..domain.plan import LayerShape
from ..domain.records import StoredPrediction, Study
from ..domain.search_space import Structure
from ..domain.states import StudyPhase, StudyState, TrialPhase, TrialState
from ..domain.study_spec import AdapterSpec, BudgetSpec, ModelSpec, StudySpec
from .common import Sent, Time, Wire

SHOWN_PREDICTIONS = 10


class Progress(Wire):
    """Trials by what they are for."""

    planned: int
    finished: int
    running: int
    queued: int


class PredictionOut(Wire):
    r1: int
    r2: int
    r: int
    parameters: int
    score: float
    reason: str


class RankingOut(Wire):
    """A predictor's ranking, best first."""

    predictor: str
    ranked: int = Field(description="How many configurations the predictor ranked.")
    best: list[PredictionOut]


class BudgetOut(Wire):
    max_parameters: int
    base_parameters: int
    adapted_layers: int


class StudyOut(Wire):
    id: str
    name: str
    state: StudyState
    phase: StudyPhase
    reason: str | None
    spec: StudySpec
    budget: BudgetOut
    structures: list[Structure]
    search: Progress
    confirmation: Progress
    created_at: Time
    started_at: Time | None
    finished_at: Time | None

    @classmethod
    def of(cls, study: Study, counts: Mapping[tuple[TrialPhase, TrialState], int]) -> StudyOut:
        """From the record and the number of its trials by phase and state."""
        plan = study.plan
        return cls(
            id=study.id,
            name=study.name,
            state=study.state,
            phase=study.phase,
            reason=study.reason,
            spec=study.spec,
            budget=BudgetOut(
                max_parameters=plan.max_parameters,
                base_parameters=plan.base_parameters,
                adapted_layers=len(plan.shapes),
            ),
            structures=list(plan.structures),
            search=_progress(counts, (TrialPhase.SEARCH,), study.spec.search.trials),
            confirmation=_progress(counts, (TrialPhase.TUNING, TrialPhase.CONFIRMATION), None),
            created_at=study.created_at,
            started_at=study.started_at,
            finished_at=study.finished_at,
        )


def _progress(
    counts: Mapping[tuple[TrialPhase, TrialState], int], phases: Sequence[TrialPhase], planned: int | None
) -> Progress:
    mine = [(state, n) for (phase, state), n in counts.items() if phase in phases]
    running = sum(n for state, n in mine if state is TrialState.RUNNING)
    queued = sum(n for state, n in mine if state is TrialState.QUEUED)
    total = sum(n for _, n in mine)
    return Progress(
        planned=total if planned is None else planned,
        finished=total - running - queued,
        running=running,
        queued=queued,
    )


class StudyCreated(StudyOut):
    """A new study, with what the predictors say of its budget."""

    predictions: list[RankingOut]
    layers: list[LayerShape]


def rankings(predictions: Mapping[str, Sequence[StoredPrediction]], shown: int = SHOWN_PREDICTIONS) -> list[RankingOut]:
    """The head of every ranking."""
    return [
        RankingOut(
            predictor=name,
            ranked=len(ranking),
            best=[PredictionOut.model_validate(p) for p in ranking[:shown]],
        )
        for name, ranking in predictions.items()
    ]


class PredictionTask(Sent):
    kind: str = "sequence_classification"


class PredictionRequest(Sent):
    """A model, a task and a budget to predict for; nothing is stored."""

    model: ModelSpec
    task: PredictionTask = PredictionTask()
    adapter: AdapterSpec = AdapterSpec()
    budget: BudgetSpec


class PredictionsOut(Wire):
    budget: BudgetOut
    predictions: list[RankingOut]
