"""Studies and predictions on the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from ..domain.group_spec import Grouping
from ..domain.inputs import Inputs
from ..domain.plan import LayerShape, MemoryNeed
from ..domain.records import Ranking, RankingState, StoredPrediction, Study
from ..domain.search_space import Pair
from ..domain.states import EventKind, StudyPhase, StudyState, TrialPhase, TrialState
from ..domain.study_spec import AdapterSpec, BudgetSpec, ModelSpec, Objective, Predictor, StudySpec
from .trials import TrialOut
from .wire import Sent, Time, Wire

SHOWN_PREDICTIONS = 10


class Progress(Wire):
    """Trials by what they are for."""

    planned: int
    finished: int
    running: int
    queued: int
    waiting: int = Field(default=0, description="Held at a rung of successive halving, with a checkpoint.")


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
    state: RankingState = RankingState.READY
    reason: str | None = Field(default=None, description="Why the predictor has not spoken.")
    ranked: int = Field(description="How many configurations the predictor ranked.")
    best: list[PredictionOut] = Field(description="The first pairs (r1, r2), each at its best r.")
    groups: dict[str, list[PredictionOut]] = Field(
        default={},
        description="The same of each group of layers within its share of the budget, as one LoRA rank would share "
        "it, where groups have structures of their own.",
    )


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
    waiting_for: str | None = Field(default=None, description="Why nothing runs though there is something to run.")
    revision: int = Field(description="Counts changes by PATCH; the part of the ETag that If-Match looks at.")
    version: int = Field(description="Counts every change of the study and its trials; its newest event's number.")
    spec: StudySpec
    budget: BudgetOut
    structures: list[Pair]
    search: Progress
    recheck: Progress = Field(description="The best configurations' repetitions with other seeds.")
    confirmation: Progress
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    gpu_seconds: float = Field(description="GPU time of attempts that are over.")
    storage_bytes: int = Field(description="Bytes of adapters that its trials have left.")
    memory: MemoryNeed | None = Field(default=None, description="Estimated peak of one process of a trial, in bytes.")
    notes: list[str] = Field(default=[], description="Layers and weights that are not adapted, and why.")
    inputs: Inputs | None = Field(
        default=None, description="Data and base model of its trials; null until one has made a step."
    )
    group: Grouping | None = Field(default=None, description="Its place among linked studies.")

    @classmethod
    def of(
        cls, study: Study, counts: Mapping[tuple[TrialPhase, TrialState], int], waiting_for: str | None = None
    ) -> StudyOut:
        """From the record and the number of its trials by phase and state."""
        plan = study.plan
        return cls(
            id=study.id,
            name=study.name,
            state=study.state,
            phase=study.phase,
            reason=study.reason,
            waiting_for=waiting_for,
            revision=study.revision,
            version=study.version,
            spec=study.spec,
            budget=BudgetOut(
                max_parameters=plan.max_parameters,
                base_parameters=plan.base_parameters,
                adapted_layers=len(plan.shapes),
            ),
            structures=list(plan.structures),
            search=_progress(counts, (TrialPhase.SEARCH,), study.planned),
            recheck=_progress(counts, (TrialPhase.RECHECK,), None),
            confirmation=_progress(counts, (TrialPhase.TUNING, TrialPhase.CONFIRMATION), None),
            created_at=study.created_at,
            started_at=study.started_at,
            finished_at=study.finished_at,
            gpu_seconds=study.gpu_seconds,
            storage_bytes=study.storage_bytes,
            memory=plan.memory,
            notes=list(plan.notes),
            inputs=study.inputs,
            group=study.group,
        )


def _progress(
    counts: Mapping[tuple[TrialPhase, TrialState], int], phases: Sequence[TrialPhase], planned: int | None
) -> Progress:
    mine = [(state, n) for (phase, state), n in counts.items() if phase in phases]
    running = sum(n for state, n in mine if state is TrialState.RUNNING)
    queued = sum(n for state, n in mine if state is TrialState.QUEUED)
    waiting = sum(n for state, n in mine if state is TrialState.WAITING)
    total = sum(n for _, n in mine)
    return Progress(
        planned=total if planned is None else planned,
        finished=total - running - queued - waiting,
        running=running,
        queued=queued,
        waiting=waiting,
    )


class StudyCreated(StudyOut):
    """A new study, with what the predictors say of its budget."""

    predictions: list[RankingOut]
    layers: list[LayerShape]


def rankings(found: Sequence[Ranking], shown: int = SHOWN_PREDICTIONS) -> list[RankingOut]:
    """The head of every ranking."""
    return [
        RankingOut(
            predictor=ranking.predictor,
            state=ranking.state,
            reason=ranking.reason,
            ranked=len(ranking.predictions),
            best=_head(ranking.predictions, shown),
            groups={name: _head(own, shown) for name, own in ranking.groups.items()},
        )
        for ranking in found
    ]


def _head(predictions: Sequence[StoredPrediction], shown: int) -> list[PredictionOut]:
    return [PredictionOut.model_validate(p) for p in _pairs(predictions)[:shown]]


def _pairs(predictions: Sequence[StoredPrediction]) -> list[StoredPrediction]:
    """The first, and so the best, prediction of each pair (r1, r2)."""
    once: dict[tuple[int, int], StoredPrediction] = {}
    for prediction in predictions:
        once.setdefault((prediction.r1, prediction.r2), prediction)
    return list(once.values())


class StrategyOut(Wire):
    """A sampler or pruner, with the JSON schema of its options."""

    name: str
    summary: str
    multi_objective: bool
    options: dict[str, Any]


class ParetoOut(Wire):
    """The finished search trials that no other dominates; with one objective, the best ones."""

    objectives: list[Objective]
    trials: list[TrialOut]


class EventOut(Wire):
    number: int
    kind: EventKind
    at: Time
    data: dict[str, Any]


class PredictionTask(Sent):
    kind: str = "sequence_classification"


class PredictionRequest(Sent):
    """A model, a task and a budget to predict for; nothing is stored.

    ``measured`` is refused: it needs a study, whose runners look at the model's gradients.
    """

    predictors: Annotated[list[Predictor], Field(min_length=1, max_length=3)] = ["guideline", "alignment"]
    model: ModelSpec
    task: PredictionTask = PredictionTask()
    adapter: AdapterSpec = AdapterSpec()
    budget: BudgetSpec


class PredictionsOut(Wire):
    budget: BudgetOut
    predictions: list[RankingOut]
