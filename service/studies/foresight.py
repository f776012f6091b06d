"""Predictions for a model, a task and a budget, without a study."""

from __future__ import annotations

from collections.abc import Sequence

from ..context.context import Context
from ..domain.metrics import METRICS
from ..domain.plan import Plan
from ..domain.records import Principal, Ranking, RankingState, Role
from ..domain.study_spec import AdapterSpec, BudgetSpec, ModelSpec
from ..errors import Fault, Forbidden, InvalidRequest
from ..paths import resolve_inside
from .plans import plan_prediction
from .predictions import MEASURED
from .structures import rank_groups


def foresee(
    ctx: Context,
    principal: Principal,
    model: ModelSpec,
    kind: str,
    adapter: AdapterSpec,
    budget: BudgetSpec,
    predictors: Sequence[str],
) -> tuple[Plan, list[Ranking]]:
    """What predictors say of a budget; stores nothing.

    Raises:
        InvalidRequest: with every fault, each at its place; ``measured`` needs a study.
        Forbidden: a viewer named a model outside the data directories.
    """
    if kind not in METRICS:
        fault = Fault("#/task/kind", f"unknown task {kind!r}; available: {', '.join(METRICS)}")
        raise InvalidRequest("no prediction can be made", [fault])
    if MEASURED in predictors:
        message = (
            "'measured' needs a study, because a runner computes the model's gradients: name it in compare.predictors"
        )
        fault = Fault(f"#/predictors/{list(predictors).index(MEASURED)}", message)
        raise InvalidRequest("no prediction can be made", [fault])
    if principal.role is Role.VIEWER and resolve_inside(model.path, ctx.settings.data_roots) is None:
        raise Forbidden("a viewer's token names models in the data directories; those of the hub are downloaded")
    plan, ranked = ctx.aside(plan_prediction, model, kind, adapter, budget, ctx.settings.data_roots)
    found = [
        Ranking(name, RankingState.READY, None, ranked[name], rank_groups(plan, None, name))
        for name in dict.fromkeys(predictors)
    ]
    return plan, found
