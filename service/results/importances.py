"""Which parameters told good trials from others: Optuna's PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator

from ..domain.ranges import FloatRange
from ..domain.records import Observation, Study
from ..domain.structure import SIZES

# With fewer, the best tenth is a single trial.
FEWEST = 20
# Of a longer search the newest are taken, so that a page is made in time.
_MOST = 2_000


def importances_of(study: Study, done: Sequence[Observation]) -> dict[str, float]:
    """The share of each parameter that varied, largest first; empty for fewer than ``FEWEST`` completed trials."""
    done = done[-_MOST:]
    if len(done) < FEWEST:
        return {}
    space = study.spec.search_space
    sizes = [f"{group}.{name}" for group in study.plan.groups for name in SIZES] or list(SIZES)
    asked: dict[str, BaseDistribution] = {}
    for name in (*sizes, *space.parameters()):
        values = {t.params.get(name) for t in done}
        if None in values or len(values) < 2:
            continue
        found = getattr(space, name, None)
        if isinstance(found, FloatRange):
            seen = [float(t.params[name]) for t in done]
            low, high = min(found.low, *seen), max(found.high, *seen)
            # Somebody may have enqueued a 0.
            asked[name] = FloatDistribution(low, high, log=found.log and low > 0)
        else:
            asked[name] = CategoricalDistribution(sorted(values, key=str))
    if not asked:
        return {}
    objective = study.spec.objective
    made = optuna.create_study(direction=objective.direction.value)
    made.add_trials(
        [
            optuna.trial.create_trial(
                params={name: t.params[name] for name in asked}, distributions=asked, value=t.metrics[objective.metric]
            )
            for t in done
        ]
    )
    if len({t.metrics[objective.metric] for t in done}) == 1:
        return {}
    shares = optuna.importance.get_param_importances(made, evaluator=PedAnovaImportanceEvaluator())
    return {name: float(share) for name, share in shares.items()}
