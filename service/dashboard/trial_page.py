"""The page of one trial, and its buttons."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from ..api.dependencies import ContextDep
from ..context.context import Context
from ..domain.faults import schema_faults
from ..domain.records import Principal, Study, Trial
from ..domain.states import TrialState
from ..errors import Fault, InvalidRequest, NotFound, ServiceError
from ..leases import trial_logs
from ..results import comparison as comparing
from ..results.sentences import duration
from ..schemas.trials import Configuration
from ..studies import studies, trials
from .shell import may_write, principal_of, require_member, require_same_origin, templates, to_login

LOG_CHARACTERS = 20_000
router = APIRouter(include_in_schema=False)


class Verb(StrEnum):
    """The actions of a trial's buttons."""

    STOP = "stop"
    RETRY = "retry"
    CLONE = "clone"


@router.get("/trials/{trial_id}")
def trial_page(request: Request, ctx: ContextDep, trial_id: str) -> Response:
    """Show a trial: parameters beside the best's, evaluations, result, adapter, log."""
    principal = principal_of(request, ctx)
    return to_login() if principal is None else _page(request, ctx, principal, trial_id)


def _page(
    request: Request, ctx: Context, principal: Principal, trial_id: str, said: str = "", status: int = 200
) -> Response:
    try:
        trial = trials.get_trial(ctx, trial_id, principal.scope)
        study, _ = studies.get_study(ctx, trial.study_id, principal.scope)
    except NotFound as error:
        shown = {"principal": principal, "detail": error.detail}
        return templates.TemplateResponse(request, "missing.html", shown, status_code=404)
    log = trial_logs.read_log(ctx, trial_id, principal.scope, None, None, LOG_CHARACTERS) if trial.attempts else None
    best = comparing.compare(ctx, study.id, principal.scope).best_trial
    return templates.TemplateResponse(
        request,
        "trial.html",
        {
            "principal": principal,
            "place": "studies",
            "study": study,
            "trial": trial,
            "metric": study.spec.objective.metric,
            "best": None if best is None else _Best(best["params"]),
            "may_write": may_write(principal),
            "outcome": outcome(study, trial),
            "resources": _resources(trial),
            "log": log,
            "said": said,
        },
        status_code=status,
    )


class _Best:
    """The best found, as the template reads it."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params


def outcome(study: Study, trial: Trial) -> str:
    """What became of a trial, in words."""
    attempts = f"{trial.attempts} attempt{'s' * (trial.attempts != 1)}"
    lost = (
        f"; its runner was lost {trial.losses} times"
        if trial.losses > 1
        else "; its runner was lost once" * trial.losses
    )
    last = trial.curve[-1] if trial.curve else None
    reached = f", at {last:.4g} after {len(trial.curve)} evaluations" if last is not None else ""
    said = {
        TrialState.QUEUED: "It waits for a runner.",
        TrialState.RUNNING: f"It is running{reached}.",
        TrialState.WAITING: f"It is held at a rung{reached}, and continues if later results promote it.",
        TrialState.COMPLETED: "It ran to its end.",
        TrialState.PRUNED: f"It was stopped early{reached}, because others were better.",
        TrialState.INFEASIBLE: "Its configuration cannot work and is not tried again.",
        TrialState.FAILED: f"It failed; a failed trial has up to {study.spec.search.retries} retries of its own.",
        TrialState.CANCELLED: "It was cancelled.",
    }[trial.state]
    return f"{said} It took {attempts}{lost}." if trial.attempts else said


def _resources(trial: Trial) -> list[tuple[str, str]]:
    shown: list[tuple[str, str]] = []
    for name, value in trial.resources.items():
        if isinstance(value, dict) or value is None or (name.endswith("seconds") and not value):
            continue
        if name.endswith("_bytes") and isinstance(value, int | float):
            shown.append((name.removesuffix("_bytes"), f"{value / 2**20:,.1f} MiB"))
        elif name in ("seconds", "gpu_seconds", "train_seconds") and isinstance(value, int | float):
            shown.append((name.replace("seconds", "time"), duration(float(value))))
        else:
            shown.append((name, f"{value:,.4g}" if isinstance(value, float) else str(value)))
    return shown


def _given(texts: Mapping[str, str]) -> dict[str, Any]:
    """The numbers of a form.

    Raises:
        InvalidRequest: one is none, or cannot be that parameter.
    """
    found = {}
    for name, text in texts.items():
        if not text:
            continue
        try:
            found[name] = float(text)
        except ValueError:
            raise InvalidRequest("nothing was queued", [Fault(f"#/params/{name}", f"{text!r} is no number")]) from None
    try:
        return Configuration.model_validate(found).given()
    except ValidationError as error:
        raise InvalidRequest("nothing was queued", schema_faults(error)) from error


@router.post("/trials/{trial_id}/{verb}")
def steer_trial(
    request: Request,
    ctx: ContextDep,
    trial_id: str,
    verb: Verb,
    learning_rate: Annotated[str, Form(max_length=40)] = "",
    alpha: Annotated[str, Form(max_length=40)] = "",
    warm: Annotated[str, Form(max_length=10)] = "",
) -> Response:
    """Run a button's action; what cannot be done is said on the page."""
    require_same_origin(request)
    principal = require_member(request, ctx, f"{verb} a trial")
    try:
        if verb is Verb.STOP:
            trials.stop_trial(ctx, principal, trial_id)
        elif verb is Verb.RETRY:
            trials.retry_trial(ctx, principal, trial_id)
        else:
            source = trials.get_trial(ctx, trial_id, principal.scope)
            given = _given({"learning_rate": learning_rate, "alpha": alpha})
            made = trials.clone(ctx, principal, source.study_id, trial_id, given, warm=warm == "yes")
            return RedirectResponse(f"/trials/{made.id}", status_code=303)
    except ServiceError as error:
        if error.status not in (409, 422):
            raise
        faults = error.faults if isinstance(error, InvalidRequest) else []
        said = "; ".join(f.detail for f in faults) or error.detail
        return _page(request, ctx, principal, trial_id, said, error.status)
    return RedirectResponse(f"/trials/{trial_id}", status_code=303)
