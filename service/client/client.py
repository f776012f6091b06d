"""The SDK: a typed client of the REST interface. Imports neither torch nor ray nor FastAPI."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ..errors import Conflict, ServiceError
from ..schemas.comparison import ComparisonOut
from ..schemas.groups import GroupCreated, GroupOut, RecordOut, RecordsOut
from ..schemas.leases import (
    MOST_VALUES,
    DemandOut,
    DirectiveOut,
    InputsOut,
    LeasesOut,
    LogTaken,
    ResultIn,
    ResultOut,
)
from ..schemas.specs import Inputs, Shape
from ..schemas.studies import EventOut, ParetoOut, PredictionsOut, RankingOut, StrategyOut, StudyCreated, StudyOut
from ..schemas.teams import AuditOut, HostOut, RunnerOut, TeamOut, TeamWithUsage
from ..schemas.tokens import TokenCreated, TokenOut
from ..schemas.trials import MetricOut, TrialLogOut, TrialOut
from ..schemas.webhooks import DeliveryOut, WebhookCreated, WebhookOut
from ..schemas.wire import Page
from .connection import API, Connection

_COMPARISONS = TypeAdapter(list[ComparisonOut])
_RANKINGS = TypeAdapter(list[RankingOut])


class Client(Connection):
    """All calls of the server. Lists are iterators that fetch one page after another."""

    def ready(self) -> bool:
        """Whether the server answers and its database is in order."""
        try:
            self._once("GET", "/readyz", None, None)
        except ServiceError:
            return False
        return True

    # Studies.

    def create_study(self, study: Mapping[str, Any]) -> StudyCreated:
        """Create a study.

        Raises:
            InvalidStudy: with every fault; nothing was stored.
            QuotaExceeded: the team's quota of open studies is used up.
        """
        return StudyCreated.model_validate(self._post("/studies", dict(study)))

    def create_group(self, group: Mapping[str, Any]) -> GroupCreated:
        """Create linked studies: a study with ``budgets``, ``models`` or ``tasks``, or with ``search.repeats``.

        Raises:
            InvalidStudy: with every fault; nothing was stored.
            QuotaExceeded: the team's quota of open studies does not admit all of them.
        """
        return GroupCreated.model_validate(self._post("/groups", dict(group)))

    def group(self, group_id: str) -> GroupOut:
        """Get linked studies as one answer."""
        return self._get(GroupOut, f"/groups/{group_id}")

    def predictors_record(self) -> list[RecordOut]:
        """Get how the team's predictors fared in all its confirmed studies."""
        return self._get(RecordsOut, "/predictors/record").items

    def studies(
        self, *, state: Sequence[str] = (), name: str | None = None, order: str = "newest"
    ) -> Iterator[StudyOut]:
        """Iterate over studies by age, filtered by state and by a part of the name."""
        return self._pages(StudyOut, "/studies", state=list(state), name=name, order=order)

    def study(self, study_id: str) -> StudyOut:
        """Get a study with its progress."""
        return self._get(StudyOut, f"/studies/{study_id}")

    def update_study(self, study_id: str, *, if_revision: int | None = None, **changes: Any) -> StudyOut:
        """Change ``name``, ``priority``, ``trials``, ``concurrency``, ``retries``, ``limits`` or ``seeds``.

        Raises:
            Changed: the study is no longer at ``if_revision``.
        """
        headers = {} if if_revision is None else {"If-Match": f'"{if_revision}.0"'}
        said = self._call("PATCH", f"{API}/studies/{study_id}", body=changes, headers=headers)
        return StudyOut.model_validate(said)

    def pause_study(self, study_id: str, *, drain: bool = True) -> StudyOut:
        """Pause a study. Running trials finish (``drain``) or are queued again now."""
        return StudyOut.model_validate(self._post(f"/studies/{study_id}/pause", params={"drain": drain}))

    def resume_study(self, study_id: str) -> StudyOut:
        """Resume a paused study."""
        return StudyOut.model_validate(self._post(f"/studies/{study_id}/resume"))

    def cancel_study(self, study_id: str) -> StudyOut:
        """Cancel a study."""
        return StudyOut.model_validate(self._post(f"/studies/{study_id}/cancel"))

    def delete_study(self, study_id: str, *, purge: bool = False) -> None:
        """Delete a study. Its rows and adapters are removed after ``CDKA_PURGE_HOURS``, or now (``purge``)."""
        self._call("DELETE", f"{API}/studies/{study_id}", params={"purge": purge})

    def predictions(self, study_id: str) -> list[RankingOut]:
        """Get the predictors' rankings of a study."""
        return _RANKINGS.validate_python(self._call("GET", f"{API}/studies/{study_id}/predictions"))

    def comparison(self, study_id: str) -> ComparisonOut:
        """Compare the best found with predictions and baselines, as of now."""
        return self._get(ComparisonOut, f"/studies/{study_id}/comparison")

    def compare(self, *study_ids: str) -> list[ComparisonOut]:
        """Get the comparisons of several studies."""
        return _COMPARISONS.validate_python(self._call("GET", f"{API}/compare", params={"study": list(study_ids)}))

    def front(self, study_id: str) -> ParetoOut:
        """Get the Pareto front of the finished search trials."""
        return self._get(ParetoOut, f"/studies/{study_id}/front")

    def watch(self, study_id: str, *, after: int = 0) -> Iterator[EventOut]:
        """Iterate over a study's events after ``after``, as they happen, until the study ends.

        A broken stream is resumed: no event is missed or repeated.
        """
        return self._stream(EventOut, f"/studies/{study_id}/events", after)

    def events(self, study_id: str, *, after: int = 0) -> Iterator[EventOut]:
        """List a study's events so far, after event ``after``."""
        while True:
            page = self._get(Page[EventOut], f"/studies/{study_id}/events/log", after=after, limit=200)
            yield from page.items
            if page.next_cursor is None:
                return
            after = int(page.next_cursor)

    def export_study(self, study_id: str, file: Path, form: str = "csv") -> Path:
        """Write a study to a file: ``csv`` (its trials), ``json`` (everything) or ``optuna`` (a storage)."""
        return self._download(f"/studies/{study_id}/export", file, format=form)

    def write_report(self, study_id: str, file: Path, form: str = "html") -> Path:
        """Write a study's report to a file: ``html``, ``md`` or ``json``."""
        return self._download(f"/studies/{study_id}/report", file, format=form)

    def write_group_report(self, group_id: str, file: Path, form: str = "html") -> Path:
        """Write a report of a group's studies to a file: ``html``, ``md`` or ``json``."""
        return self._download(f"/groups/{group_id}/report", file, format=form)

    def predict(self, study: Mapping[str, Any]) -> PredictionsOut:
        """Get predictions for the model, task and budget of a study. Stores nothing."""
        body = {k: study[k] for k in ("model", "adapter", "budget") if k in study}
        task = study.get("task")
        if isinstance(task, Mapping) and "kind" in task:
            body["task"] = {"kind": task["kind"]}
        return PredictionsOut.model_validate(self._call("POST", f"{API}/predictions", body=body, repeat=True))

    def samplers(self) -> list[StrategyOut]:
        """List the samplers with the schemas of their options."""
        return self._get(Page[StrategyOut], "/samplers").items

    def pruners(self) -> list[StrategyOut]:
        """List the pruners with the schemas of their options."""
        return self._get(Page[StrategyOut], "/pruners").items

    # Trials.

    def trials(
        self, study_id: str, *, state: Sequence[str] = (), phase: str | None = None, order: str = "number"
    ) -> Iterator[TrialOut]:
        """Iterate over a study's trials by number (``-number``: newest first)."""
        return self._pages(TrialOut, f"/studies/{study_id}/trials", state=list(state), phase=phase, order=order)

    def trial(self, trial_id: str) -> TrialOut:
        """Get a trial."""
        return self._get(TrialOut, f"/trials/{trial_id}")

    def enqueue_trial(self, study_id: str, params: Mapping[str, Any]) -> TrialOut:
        """Queue a configuration: r1, r2, r, alpha, learning_rate, and others that the study searches."""
        return TrialOut.model_validate(self._post(f"/studies/{study_id}/trials", {"params": dict(params)}))

    def clone_trial(self, trial_id: str, changes: Mapping[str, Any] | None = None, *, warm: bool = False) -> TrialOut:
        """Queue a trial's configuration with changes; ``warm`` starts the training from the trial's adapter."""
        body = {"from": trial_id, "params": dict(changes or {}), "warm": warm}
        return TrialOut.model_validate(self._post(f"/studies/{self.trial(trial_id).study_id}/trials", body))

    def stop_trial(self, trial_id: str) -> TrialOut:
        """Stop one trial. Its study continues."""
        return TrialOut.model_validate(self._post(f"/trials/{trial_id}/stop"))

    def retry_trial(self, trial_id: str) -> TrialOut:
        """Queue a failed trial again."""
        return TrialOut.model_validate(self._post(f"/trials/{trial_id}/retry"))

    def metrics(self, trial_id: str) -> list[MetricOut]:
        """Get every value that a trial reported."""
        return self._get(Page[MetricOut], f"/trials/{trial_id}/metrics").items

    def fetch_adapter(self, trial_id: str, file: Path) -> Path:
        """Download a trial's adapter, as PEFT saved it, as a zip file."""
        return self._download(f"/trials/{trial_id}/adapter", file)

    def best_trial(self, study_id: str) -> TrialOut:
        """The trial whose adapter to use: of the best configuration found, the confirmation run with the first seed.

        A study without confirmation runs answers with the best trial of its search.

        Raises:
            Conflict: no trial of the study has finished yet.
        """
        trials = [t for t in self.trials(study_id) if t.state == "completed"]
        confirmed = [t for t in trials if t.candidate == "best"]
        if confirmed:
            return min(confirmed, key=lambda trial: trial.number)
        best = self.comparison(study_id).best_trial
        found = next((t for t in trials if best is not None and t.number == best["number"]), None)
        if found is None:
            raise Conflict("the study has no finished trial yet")
        return found

    def fetch_best(self, study_id: str, folder: Path) -> Path:
        """Download the adapter of :meth:`best_trial` into a new folder, with its tokenizer and ``cdka_task.json``.

        Raises:
            Conflict: no trial of the study has finished yet, or the folder exists and is not empty.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise Conflict(f"{folder} exists and is not an empty folder")
        trial = self.best_trial(study_id)
        with tempfile.TemporaryDirectory(prefix="cdka-fetch-") as scratch:
            file = self.fetch_adapter(trial.id, Path(scratch) / "adapter.zip")
            folder.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(file) as archive:
                archive.extractall(folder)
        return folder

    # Operation.

    def create_token(
        self, name: str, role: str, team: str | None = None, expires_at: datetime | None = None
    ) -> TokenCreated:
        """Create a token. Only this response contains its secret."""
        end = None if expires_at is None else expires_at.isoformat()
        body = {"name": name, "role": role, "team": team, "expires_at": end}
        return TokenCreated.model_validate(self._post("/tokens", body))

    def rotate_token(self, token_id: str, grace_seconds: float = 3600) -> TokenCreated:
        """Create a new secret for a token. The old one stays valid for ``grace_seconds``."""
        return TokenCreated.model_validate(self._post(f"/tokens/{token_id}/rotate", {"grace_seconds": grace_seconds}))

    def revoke_token(self, token_id: str) -> None:
        """Revoke a token immediately."""
        self._call("DELETE", f"{API}/tokens/{token_id}")

    def tokens(self) -> list[TokenOut]:
        """List tokens without their secrets."""
        return self._get(Page[TokenOut], "/tokens").items

    def teams(self) -> list[TeamWithUsage]:
        """List the caller's team, or all teams for an admin, with quotas and usage."""
        return self._get(Page[TeamWithUsage], "/teams").items

    def create_team(self, name: str, **quotas: Any) -> TeamOut:
        """Create a team; quotas as in :meth:`update_team`."""
        return TeamOut.model_validate(self._post("/teams", {"name": name, **quotas}))

    def update_team(self, team_id: str, **quotas: Any) -> TeamOut:
        """Change ``weight``, ``max_running_trials``, ``max_gpus``, ``max_studies``, ``max_storage_bytes``."""
        return TeamOut.model_validate(self._call("PATCH", f"{API}/teams/{team_id}", body=quotas, repeat=True))

    def workers(self) -> list[RunnerOut]:
        """List the runners of the caller's team with the time each was last seen."""
        return self._get(Page[RunnerOut], "/workers").items

    def audit(self, target: str | None = None) -> Iterator[AuditOut]:
        """Iterate over the audit log, newest first."""
        return self._pages(AuditOut, "/audit", target=target)

    def create_webhook(self, url: str, events: Sequence[str] | None = None) -> WebhookCreated:
        """Create a webhook for the team's events. Only this response contains the signing secret."""
        body = {"url": url} | ({} if events is None else {"events": list(events)})
        return WebhookCreated.model_validate(self._post("/webhooks", body))

    def webhooks(self) -> list[WebhookOut]:
        """The team's webhooks."""
        return self._get(Page[WebhookOut], "/webhooks").items

    def delete_webhook(self, webhook_id: str) -> None:
        """Delete a webhook."""
        self._call("DELETE", f"{API}/webhooks/{webhook_id}")

    def deliveries(self, webhook_id: str) -> Iterator[DeliveryOut]:
        """Iterate over a webhook's deliveries, newest first."""
        return self._pages(DeliveryOut, f"/webhooks/{webhook_id}/deliveries")

    def log(self, trial_id: str, *, attempt: int | None = None, after: int | None = None) -> TrialLogOut:
        """Get a piece of an attempt's output (by default the last attempt) from ``after`` on (by default its end)."""
        asked = {"attempt": attempt, "after": after}
        given = {name: value for name, value in asked.items() if value is not None}
        return self._get(TrialLogOut, f"/trials/{trial_id}/logs", **given)

    def hosts(self) -> list[HostOut]:
        """List hosts with failures, including quarantined ones."""
        return self._get(Page[HostOut], "/hosts").items

    def release_host(self, name: str) -> HostOut:
        """End a host's quarantine."""
        return HostOut.model_validate(self._post("/hosts/release", {"host": name}))

    # The workers' side.

    def lease(
        self,
        runner: str,
        shape: Shape,
        warm: Sequence[str] = (),
        wanted: int = 1,
        host: str | None = None,
    ) -> LeasesOut:
        """Lease trials that a runner of this shape can run. An empty response says when to ask again."""
        body = {"runner": runner, **shape.as_dict(), "warm": list(warm), "max": wanted, "host": host}
        return LeasesOut.model_validate(self._call("POST", f"{API}/leases", body=body))

    def report(
        self,
        lease_id: str,
        reports: Sequence[tuple[int, Mapping[str, float]]] = (),
        checkpoint: str | None = None,
        total_steps: int | None = None,
    ) -> DirectiveOut:
        """Send reports (none: a heartbeat), in several requests if they are many; returns the last directive.

        ``total_steps`` is the last step of the trial's training: an evaluation there is not judged.

        Raises:
            LeaseLost: the lease is no longer held; stop.
        """
        requests: list[list[dict[str, Any]]] = [[]]
        count = 0
        for step, metrics in reports:
            if requests[-1] and count + len(metrics) > MOST_VALUES:
                requests.append([])
                count = 0
            requests[-1].append({"step": step, "metrics": dict(metrics)})
            count += len(metrics)
        path = f"{API}/leases/{lease_id}/reports"
        for part in requests[:-1]:
            self._call("POST", path, body={"reports": part, "checkpoint": None})
        body: dict[str, Any] = {"reports": requests[-1], "checkpoint": checkpoint}
        if total_steps is not None:
            body["total_steps"] = total_steps
        return DirectiveOut.model_validate(self._call("POST", path, body=body))

    def record_inputs(self, lease_id: str, inputs: Inputs) -> Inputs:
        """Record what the study's trials are trained on, after the first step; returns what is recorded.

        Raises:
            InputsChanged: the study began with other data or another base model.
            LeaseLost: the lease is no longer held.
        """
        body = inputs.model_dump(mode="json")
        return InputsOut.model_validate(self._call("PUT", f"{API}/leases/{lease_id}/inputs", body=body)).inputs

    def append_log(self, lease_id: str, start: int, text: str) -> int:
        """Append to an attempt's log; returns its new end.

        Raises:
            LeaseLost: the lease is no longer held.
        """
        body = {"start": start, "text": text}
        return LogTaken.model_validate(self._call("POST", f"{API}/leases/{lease_id}/logs", body=body)).next

    def finish(self, lease_id: str, result: ResultIn | Mapping[str, Any]) -> ResultOut:
        """Send an attempt's result. May be repeated.

        Raises:
            LeaseLost: the lease is no longer held.
        """
        body = result.model_dump(mode="json") if isinstance(result, ResultIn) else dict(result)
        return ResultOut.model_validate(self._call("PUT", f"{API}/leases/{lease_id}/result", body=body))

    def demand(self) -> DemandOut:
        """The number of runners of each shape that have work."""
        return self._get(DemandOut, "/demand")
