"""A study as a document to hand on: HTML in one file, Markdown, or JSON that ``cdka submit`` runs again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from ..context.context import Context
from ..db.predictions import Predictions
from ..db.studies import Studies
from ..db.trials import Trials
from ..domain.comparison import Comparison
from ..domain.inputs import Inputs
from ..domain.records import Study, Trial
from ..domain.states import StudyState, TrialPhase, TrialState
from ..domain.structure import SIZES, by_group, told
from ..domain.study_spec import StudySpec
from .comparison import compare, searched
from .effects import Effects, effects_of
from .sentences import Told, duration
from .worth import Worth, worth_of

# Raised with every change that a reader of the JSON would notice.
SCHEMA = 1
_PACKAGES = ("cdka", "optuna")


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a report shows."""

    study: Study
    comparison: Comparison
    worth: Worth
    effects: Effects
    trials: list[Trial]
    made_at: datetime
    commit: str | None = None

    @property
    def states(self) -> dict[str, int]:
        """Numbers of search trials by state."""
        states = [t.state for t in self.trials if t.phase is TrialPhase.SEARCH]
        return {str(state): states.count(state) for state in TrialState if state in states}

    @property
    def seeds(self) -> dict[str, list[int]]:
        """Training seeds by phase."""
        phases = {t.phase for t in self.trials if t.phase is not TrialPhase.MEASUREMENT}
        return {str(p): sorted({t.seed for t in self.trials if t.phase is p}) for p in TrialPhase if p in phases}

    @property
    def devices(self) -> dict[str, int]:
        """Trials by the device that they were trained on."""
        return _counted(t.resources.get("device") for t in self.trials)

    @property
    def versions(self) -> dict[str, str]:
        """Packages and commits of the server, and of the runners as their trials say."""
        found = {f"server: {name}": version(name) for name in _PACKAGES}
        if self.commit is not None:
            found["server: commit"] = self.commit
        for trial in self.trials:
            packages = trial.resources.get("versions")
            if isinstance(packages, dict):
                for name, value in sorted(packages.items()):
                    found.setdefault(f"runner: {name}", str(value))
        return found


class ReportFile(TypedDict):
    """A report as JSON. ``study`` is the study file, so that ``cdka submit`` runs it again.

    ``report`` is the number of this schema. Times are RFC 3339 in UTC. Differences are in the metric's own unit, signed
    so that positive favours the search.
    """

    report: int
    made_at: str
    id: str
    name: str
    state: StudyState
    answer: str
    study: StudySpec
    budget: int
    adapted_layers: int
    comparison: Comparison
    worth: Worth
    effects: Effects
    trials: dict[str, int]
    seeds: dict[str, list[int]]
    devices: dict[str, int]
    versions: dict[str, str]
    inputs: Inputs | None
    created_at: str
    finished_at: str | None


def schema() -> dict[str, Any]:
    """The JSON schema of :class:`ReportFile`."""
    return TypeAdapter(ReportFile).json_schema(mode="serialization")


def _counted(values: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in values:
        if isinstance(value, str):
            found[value] = found.get(value, 0) + 1
    return found


def report_of(ctx: Context, study_id: str, team_id: str | None) -> Report:
    """The report of a study as it is now.

    Raises:
        NotFound: there is no such study in this team.
    """
    comparison = compare(ctx, study_id, team_id)
    with ctx.db.read() as session:
        study = Studies(session).get(study_id, team_id)
        trials = Trials(session).of_study(study_id)
    return Report(
        study,
        comparison,
        worth_of(study, trials),
        current_effects(ctx, study),
        trials,
        ctx.clock(),
        ctx.settings.source_commit,
    )


def current_effects(ctx: Context, study: Study) -> Effects:
    """What the structure did, as of the study's version; computed once for the page and the report."""

    def computed() -> Effects:
        with ctx.db.read() as session:
            predictions = Predictions(session).of_study(study.id)
        return effects_of(study, searched(ctx, study.id), predictions)

    return ctx.recent.get(("effects", study.id, study.version), computed)


def as_json(report: Report) -> str:
    """The report as JSON. ``study`` is the study file, so that ``cdka submit`` runs it again."""
    return json.dumps(as_object(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_object(report: Report) -> dict[str, Any]:
    """What the JSON has."""
    study = report.study
    return {
        "report": SCHEMA,
        "made_at": report.made_at.astimezone(UTC).isoformat(),
        "id": study.id,
        "name": study.name,
        "state": study.state,
        "answer": report.comparison.answer,
        "study": study.spec.model_dump(mode="json"),
        "budget": study.plan.max_parameters,
        "adapted_layers": len(study.plan.shapes),
        "comparison": asdict(report.comparison),
        "worth": asdict(report.worth),
        "effects": asdict(report.effects),
        "trials": report.states,
        "seeds": report.seeds,
        "devices": report.devices,
        "versions": report.versions,
        "inputs": None if study.inputs is None else study.inputs.model_dump(mode="json"),
        "created_at": study.created_at.astimezone(UTC).isoformat(),
        "finished_at": None if study.finished_at is None else study.finished_at.astimezone(UTC).isoformat(),
    }


def as_html(report: Report, template: str = "report.html") -> str:
    """The report as one HTML file without scripts and without references to others.

    The template ``study.html`` gives only what stands between head and end.
    """
    # Matplotlib takes a second to import; most processes never draw.
    from . import pictures

    images = {
        "candidates": Markup(pictures.candidates(report.comparison)),  # noqa: S704  # drawn here, text escaped
        "history": Markup(pictures.history(report.study, report.worth, report.trials)),  # noqa: S704
    }
    return _render(template, report, images)


def as_markdown(report: Report) -> str:
    """The report as Markdown."""
    return _render("report.markdown", report, {})


def _render(name: str, report: Report, images: Mapping[str, Markup]) -> str:
    study_file = json.dumps(report.study.spec.model_dump(mode="json", exclude_defaults=True), indent=2)
    text = templates.get_template(name).render(
        report=report,
        study=report.study,
        comparison=report.comparison,
        images=images,
        told=Told.of(report.study),
        study_file=study_file,
    )
    return text.strip() + "\n"


def _sizes(params: Mapping[str, Any]) -> str:
    if by_group(params):
        return told(params)
    names = [n for n in (*SIZES, "factor") if n in params]
    return ", ".join(f"{n} {params[n]}" for n in names)


def _parameter(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    """Text within a cell of a Markdown table, in which nothing is read as markup."""
    escaped = "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in text)
    return " ".join(escaped.split())


templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
templates.filters |= {"sizes": _sizes, "parameter": _parameter, "duration": duration, "cell": _cell}
