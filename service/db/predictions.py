"""The predictors' rankings of studies in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..domain.records import StoredPrediction
from .models import PredictionRow


class Predictions:
    """Reads and writes rankings in one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, study_id: str, rankings: Mapping[str, Sequence[StoredPrediction]], order: Sequence[str]) -> None:
        """Record the rankings by predictor, each best first; ``order`` lists all the study's predictors."""
        for predictor, ranking in rankings.items():
            entries = [{k: v for k, v in asdict(p).items() if v is not None} for p in ranking]
            position = order.index(predictor)
            row = PredictionRow(study_id=study_id, predictor=predictor, position=position, ranking=entries)
            self._session.add(row)

    def of_study(self, study_id: str) -> dict[str, list[StoredPrediction]]:
        """The rankings of structures of all layers by predictor, best first."""
        return {name: [p for p in ranking if p.group is None] for name, ranking in self._rankings(study_id)}

    def of_groups(self, study_id: str) -> dict[str, dict[str, list[StoredPrediction]]]:
        """The stored rankings of structures of one group of layers, by predictor and group, best first."""
        found: dict[str, dict[str, list[StoredPrediction]]] = {}
        for name, ranking in self._rankings(study_id):
            for p in ranking:
                if p.group is not None:
                    found.setdefault(name, {}).setdefault(p.group, []).append(p)
        return found

    def _rankings(self, study_id: str) -> list[tuple[str, list[StoredPrediction]]]:
        query = select(PredictionRow).where(PredictionRow.study_id == study_id).order_by(PredictionRow.position)
        return [(r.predictor, [StoredPrediction(**entry) for entry in r.ranking]) for r in self._session.scalars(query)]
