"""The SDK: a typed client of the REST interface. Imports neither torch nor ray nor FastAPI."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel

from .errors import ServiceError, Unavailable, from_problem
from .schemas.common import Page
from .schemas.comparison import ComparisonOut
from .schemas.leases import DemandOut, DirectiveOut, LeaseOut, LeasesOut, ResultOut
from .schemas.studies import PredictionsOut, RankingOut, StudyCreated, StudyOut
from .schemas.tokens import TokenCreated, TokenOut
from .schemas.trials import MetricOut, TrialOut

API = "/api/v1"
Model = TypeVar("Model", bound=BaseModel)
# Methods that may be sent twice: their second run changes nothing.
_REPEATABLE = frozenset({"GET", "PUT", "DELETE"})


class Client:
    """One connection to a server.

    Calls raise the server's own errors (``service.errors``), rebuilt from its problems. A server that cannot be
    reached is ``Unavailable``; calls that change nothing when repeated are tried again before that.

    Args:
        server_url: where the server listens.
        token: the bearer token; ``None`` for a server without authentication.
        attempts: how often a repeatable call is tried.
        transport: what carries the requests; tests put an ASGI application here.
    """

    def __init__(
        self,
        server_url: str,
        token: str | None = None,
        *,
        timeout: float = 30.0,
        attempts: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=server_url, headers=headers, timeout=timeout, transport=transport)
        self._attempts = attempts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _call(
        self, method: str, path: str, *, body: Any = None, params: Mapping[str, Any] | None = None, repeat: bool = False
    ) -> Any:
        attempts = self._attempts if repeat or method in _REPEATABLE else 1
        for attempt in range(1, attempts + 1):
            try:
                return self._once(method, path, body, params)
            except Unavailable:
                if attempt == attempts:
                    raise
                # Full jitter: clients that lost the same server do not come back all at once.
                time.sleep(random.uniform(0, min(5.0, 0.25 * 2**attempt)))
        raise AssertionError("unreachable")

    def _once(self, method: str, path: str, body: Any, params: Mapping[str, Any] | None) -> Any:
        try:
            response = self._http.request(method, path, json=body, params=params)
        except httpx.TransportError as error:
            raise Unavailable(f"the server at {self._http.base_url} cannot be reached: {error}") from error
        if response.status_code == 204:
            return None
        try:
            content = response.json()
        except ValueError:
            content = {}
        if response.is_success:
            return content
        if response.status_code in (502, 503, 504):
            detail = content.get("detail") if isinstance(content, dict) else None
            raise Unavailable(detail or f"the server answered {response.status_code}")
        raise from_problem(content if isinstance(content, dict) else {}, response.status_code)

    def _get(self, model: type[Model], path: str, **params: Any) -> Model:
        given = {k: v for k, v in params.items() if v is not None}
        return model.model_validate(self._call("GET", API + path, params=given))

    def _pages(self, model: type[Model], path: str, limit: int = 200, **params: Any) -> Iterator[Model]:
        cursor = None
        while True:
            page = self._get(Page[model], path, limit=limit, cursor=cursor, **params)  # type: ignore[valid-type]
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def ready(self) -> bool:
        """Whether the server answers and its database is in order."""
        try:
            self._once("GET", "/readyz", None, None)
        except ServiceError:
            return False
        return True

    def create_study(self, study: Mapping[str, Any]) -> StudyCreated:
        """Create a study.

        Raises:
            InvalidStudy: with every fault; nothing was stored.
        """
        return StudyCreated.model_validate(self._call("POST", f"{API}/studies", body=dict(study)))

    def studies(self) -> Iterator[StudyOut]:
        """Every study, newest first."""
        return self._pages(StudyOut, "/studies")

    def study(self, study_id: str) -> StudyOut:
        """One study with its progress."""
        return self._get(StudyOut, f"/studies/{study_id}")

    def cancel_study(self, study_id: str) -> StudyOut:
        """Cancel a study."""
        return StudyOut.model_validate(self._call("POST", f"{API}/studies/{study_id}/cancel"))

    def trials(self, study_id: str) -> Iterator[TrialOut]:
        """A study's trials by number."""
        return self._pages(TrialOut, f"/studies/{study_id}/trials")

    def trial(self, trial_id: str) -> TrialOut:
        """One trial."""
        return self._get(TrialOut, f"/trials/{trial_id}")

    def metrics(self, trial_id: str) -> list[MetricOut]:
        """Every value that a trial reported."""
        return self._get(Page[MetricOut], f"/trials/{trial_id}/metrics").items

    def predictions(self, study_id: str) -> list[RankingOut]:
        """What the predictors said before the study began."""
        return [RankingOut.model_validate(r) for r in self._call("GET", f"{API}/studies/{study_id}/predictions")]

    def predict(self, study: Mapping[str, Any]) -> PredictionsOut:
        """Predictions for the model, task and budget of a study; nothing is stored."""
        body = {k: study[k] for k in ("model", "adapter", "budget") if k in study}
        task = study.get("task")
        if isinstance(task, Mapping) and "kind" in task:
            body["task"] = {"kind": task["kind"]}
        return PredictionsOut.model_validate(self._call("POST", f"{API}/predictions", body=body, repeat=True))

    def comparison(self, study_id: str) -> ComparisonOut:
        """The search's best against predictions and baselines, as it stands."""
        return self._get(ComparisonOut, f"/studies/{study_id}/comparison")

    def create_token(self, name: str, role: str, team: str | None = None) -> TokenCreated:
        """Make a token; its secret is in the answer and nowhere else."""
        body = {"name": name, "role": role, "team": team}
        return TokenCreated.model_validate(self._call("POST", f"{API}/tokens", body=body))

    def tokens(self) -> list[TokenOut]:
        """Every token, without its secret."""
        return self._get(Page[TokenOut], "/tokens").items

    def lease(self, runner: str, cpus: float, gpus: float, warm: Sequence[str] = (), wanted: int = 1) -> list[LeaseOut]:
        """Ask for trials to run."""
        body = {"runner": runner, "cpus": cpus, "gpus": gpus, "warm": list(warm), "max": wanted}
        return LeasesOut.model_validate(self._call("POST", f"{API}/leases", body=body)).leases

    def report(
        self, lease_id: str, reports: Sequence[tuple[int, Mapping[str, float]]] = (), checkpoint: str | None = None
    ) -> DirectiveOut:
        """Send reports (none: a heartbeat).

        Raises:
            LeaseLost: stop; the trial is another's now.
        """
        body = {"reports": [{"step": s, "metrics": dict(m)} for s, m in reports], "checkpoint": checkpoint}
        return DirectiveOut.model_validate(self._call("POST", f"{API}/leases/{lease_id}/reports", body=body))

    def finish(self, lease_id: str, result: Mapping[str, Any]) -> ResultOut:
        """End an attempt; may be repeated.

        Raises:
            LeaseLost: the trial is another's now.
        """
        return ResultOut.model_validate(self._call("PUT", f"{API}/leases/{lease_id}/result", body=dict(result)))

    def demand(self) -> DemandOut:
        """How many runners of each shape have something to do."""
        return self._get(DemandOut, "/demand")
