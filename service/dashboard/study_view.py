"""Everything that a study's page shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..context.context import Context
from ..db.predictions import Predictions
from ..db.trials import Trials
from ..domain.comparison import Comparison
from ..domain.records import Principal, Role, Study, Trial
from ..domain.states import STUDY_ENDED, StudyState, TrialPhase, TrialState
from ..domain.structure import SIZES, by_group
from ..domain.study_spec import AdapterSpec
from ..results import comparison as comparing
from ..results import reading
from ..results.reports import current_effects
from ..results.sentences import duration
from ..results.structure_map import StructureMap, structure_map
from ..results.worth import worth_of
from ..schemas.studies import RankingOut, StudyOut, rankings
from ..studies import studies
from ..studies.defaults import PUBLISHED_ADAPTER
from ..studies.predictions import get_predictions
from ..studies.recheck import winner
from ..studies.workload import seconds_left, workload_of
from .trial_table import Query, TrialTable, trial_table

# Beyond that the cost of a search is told in its report only.
_MOST_TRIALS = 5_000


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a finished study: sentences, and the trial whose adapter to use."""

    sentence: str
    worth: list[str]
    effects: list[str]
    trial: Trial | None
    title: str
    config: str
    # Where the question is open: how many seeds in all would settle it, and what they would take.
    more_seeds: int | None = None
    more_cost: str = ""


@dataclass(frozen=True, slots=True)
class StudyView:
    """Everything the study page shows."""

    study: Study
    out: StudyOut
    table: TrialTable
    rankings: list[RankingOut]
    comparison: Comparison
    live: bool
    version: int
    may_write: bool
    map: StructureMap | None
    answer: Answer | None
    workload: str
    left: str | None
    # The parameters that charts may show.
    parameters: list[str] = field(default_factory=list)

    @property
    def trials(self) -> list[Trial]:
        """The trials of the shown page."""
        return self.table.trials


def study_view(ctx: Context, principal: Principal, study_id: str, query: Query) -> StudyView:
    """The page of a study.

    Raises:
        NotFound: there is no such study in this team.
    """
    study, counts = studies.get_study(ctx, study_id, principal.scope)
    comparison = comparing.compare(ctx, study_id, principal.scope)
    live = study.state not in STUDY_ENDED
    work = workload_of(study.spec, study.planned)
    left = seconds_left(study, counts, _pace(ctx, study)) if live else None
    return StudyView(
        study=study,
        out=StudyOut.of(study, counts, reading.waiting_for(ctx, study, counts)),
        table=trial_table(ctx, study, counts, query),
        rankings=rankings(get_predictions(ctx, study_id, principal.scope), shown=5),
        comparison=comparison,
        live=live,
        version=study.version,
        may_write=principal.role in (Role.ADMIN, Role.MEMBER),
        map=ctx.recent.get(("map", study_id, study.version), lambda: _map(ctx, study)),
        answer=ctx.recent.get(("answer", study_id, study.version), lambda: _answer(ctx, study, comparison)),
        workload=work.told(),
        left=None if left is None else duration(left),
        parameters=_parameters(study),
    )


def _parameters(study: Study) -> list[str]:
    space = study.spec.search_space
    sizes = [f"{g}.{s}" for g in study.plan.groups for s in SIZES] or list(SIZES)
    ratio = [] if study.plan.groups else ["r2/r1"]
    return [*(["method"] if len(space.methods()) > 1 else []), *sizes, *ratio, *space.parameters()]


def _pace(ctx: Context, study: Study) -> float | None:
    """Mean seconds of the newest trials that ran to their end."""
    with ctx.db.read() as session:
        newest = Trials(session).slice(study.id, 20, 0, TrialState.COMPLETED, None, descending=True)
    taken = [float(t.resources["seconds"]) for t in newest if isinstance(t.resources.get("seconds"), int | float)]
    return sum(taken) / len(taken) if taken else None


def _map(ctx: Context, study: Study) -> StructureMap | None:
    # Groups have a pair each, so one map would say little.
    if "cdka" not in study.spec.search_space.methods() or study.plan.groups:
        return None
    with ctx.db.read() as session:
        predictions = Predictions(session).of_study(study.id)
        repeated = Trials(session).of_study(study.id, TrialPhase.RECHECK)
    found = comparing.searched(ctx, study.id)
    return structure_map(study, found, predictions, winner(found, repeated, study.spec))


def _answer(ctx: Context, study: Study, comparison: Comparison) -> Answer | None:
    if study.state is not StudyState.COMPLETED or comparison.best_trial is None:
        return None
    with ctx.db.read() as session:
        confirmed = Trials(session).of_study(study.id, TrialPhase.CONFIRMATION)
        own = Trials(session).numbered(study.id, comparison.best_trial["number"])
        total = Trials(session).next_number(study.id)
        trials = Trials(session).of_study(study.id) if total <= _MOST_TRIALS else []
    mine = [t for t in confirmed if t.candidate == "best" and t.state is TrialState.COMPLETED]
    confirmed_own = comparing.is_confirmed(study, comparison.best_trial["params"])
    trial = min(mine, key=lambda t: t.number) if mine and confirmed_own else own
    title = comparison.candidates[0].title if confirmed_own else f"best found (trial {comparison.best_trial['number']})"
    return Answer(
        comparison.answer or f"The best trial reached {comparison.best_trial['mean']:.4g}.",
        worth_of(study, trials).sentences if trials else [],
        current_effects(ctx, study).sentences,
        trial,
        f"{title[0].upper()}{title[1:]}",
        "" if trial is None else config_text(study, trial.method, trial.params),
        *_more(comparison),
    )


def _more(comparison: Comparison) -> tuple[int | None, str]:
    """The seeds that would settle an open primary question, as many as a study may have, and their cost."""
    asked = next((c for c in comparison.candidates if c.name == comparison.primary), None)
    if asked is None or asked.verdict is None or asked.verdict.seeds is None:
        return None, ""
    seconds = asked.verdict.seconds
    return min(100, asked.verdict.seeds), "" if seconds is None else duration(seconds)


def config_text(study: Study, method: str, params: dict[str, Any]) -> str:
    """Python that makes the adapter's configuration."""
    spec = study.spec.settled.for_trial(params).adapter
    if method == "full":
        rate = f"{params['learning_rate']:.3g}"
        return f"# Train these layers of the model itself: {spec.target_modules!r}\n# learning rate {rate}"
    alpha = f"{params['alpha']:g}" if "alpha" in params else ""
    values = _sizes_given(spec, params)
    package, kind = "peft", {"miss": "MissConfig", "lokr": "LoKrConfig"}.get(method, "LoraConfig")
    if method in ("cdka", "krona"):
        package, kind = "cdka", "CdkaConfig"
        values |= {"alpha": alpha}
        own = {"init_weights": spec.init_weights, "scaling": spec.scaling}
        values |= {name: repr(value) for name, value in own.items() if value != PUBLISHED_ADAPTER[name]}
    elif method == "lokr":
        values |= {"alpha": alpha, "decompose_factor": str(params["factor"])}
    elif method != "miss":
        values |= {"lora_alpha": alpha}
        values |= {"rslora": {"use_rslora": "True"}, "dora": {"use_dora": "True"}}.get(method, {})
    if spec.dropout:
        named = {"cdka": "dropout", "krona": "dropout", "lokr": "rank_dropout", "miss": "miss_dropout"}
        values[named.get(method, "lora_dropout")] = f"{spec.dropout:g}"
    values["target_modules"] = repr(spec.target_modules if spec.groups is None else _union(spec.groups))
    given = ", ".join(f"{name}={value}" for name, value in values.items())
    return f"from {package} import {kind}\n\nconfig = {kind}({given})\n# learning rate {params['learning_rate']:.3g}"


def _sizes_given(spec: AdapterSpec, params: Mapping[str, Any]) -> dict[str, str]:
    """Arguments for the structure; of groups, the first one's, and patterns for the others."""
    groups = by_group(params)
    if not groups or spec.groups is None:
        return {name: str(params[name]) for name in SIZES if name in params}
    (_, first), *others = groups.items()
    values = {name: str(size) for name, size in zip(SIZES, first, strict=True)}
    for k, argument in enumerate(("r1_pattern", "r2_pattern", "rank_pattern")):
        sizes: dict[str, int] = {}
        for group, structure in others:
            named = spec.groups[group]
            sizes |= dict.fromkeys([named] if isinstance(named, str) else named, structure[k])
        values[argument] = repr(sizes)
    return values


def _union(groups: Mapping[str, list[str] | str]) -> list[str] | str:
    """The modules of all groups: names, or a pattern if one of them is a pattern."""
    if all(isinstance(named, list) for named in groups.values()):
        return [name for named in groups.values() for name in named]
    parts = [named if isinstance(named, str) else rf"(.*\.)?({'|'.join(named)})" for named in groups.values()]
    return "|".join(f"({part})" for part in parts)
