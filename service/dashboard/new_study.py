"""The page on which a study is written, checked while one types, and started."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from ..api.dependencies import ContextDep
from ..context.context import Context
from ..domain.group_spec import Member, expand
from ..domain.metrics import METRICS
from ..domain.records import Principal
from ..domain.shape import GIB
from ..errors import Fault, InvalidStudy, NotFound, ServiceError
from ..schemas.study_file import LONGEST_TEXT, StudyFile, as_yaml
from ..studies import groups, studies
from ..studies.plans import Planned, plan_study
from ..studies.workload import workload_of
from .shell import principal_of, require_member, require_same_origin, templates, to_login

router = APIRouter(include_in_schema=False)
# Of a group, so many studies are checked while one types; all of them when it is started.
MOST_CHECKED = 4
_EXAMPLE = """\
name: my-study
model: {path: sentence-transformers/all-MiniLM-L6-v2}     # a hub id, or a folder under CDKA_DATA_DIRS
task:
  kind: sequence_classification
  dataset: {path: json, data_files: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
  columns: {text: text, label: label}
training: {epochs: 3, batch_size: 16, max_length: 128}
budget: {lora_rank: 8}                                    # the cost of LoRA of this rank
search: {trials: 24, concurrency: 2}
compare: {predictors: [guideline, alignment], baselines: [lora], seeds: {first: 3, most: 12}}
"""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check says: faults with their lines, or what the study will be."""

    faults: list[tuple[int | None, str, str]] = field(default_factory=list)
    error: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    predictions: list[tuple[str, str, str]] = field(default_factory=list)


@router.get("/new")
def new_page(
    request: Request,
    ctx: ContextDep,
    source: str | None = None,
    model: Annotated[str, Query(max_length=400)] = "",
    kind: Annotated[str, Query(max_length=40)] = "",
    rank: Annotated[str, Query(max_length=4)] = "",
) -> Response:
    """Ask for a study; ``source`` is one whose text to begin with; the others replace what the example has."""
    principal = principal_of(request, ctx)
    if principal is None:
        return to_login()
    text = begun_with(model, kind, rank)
    if source is not None:
        try:
            study, _ = studies.get_study(ctx, source, principal.scope)
        except NotFound as error:
            missing = {"principal": principal, "detail": error.detail}
            return templates.TemplateResponse(request, "missing.html", missing, status_code=404)
        # What has its default is left out, but for the name's sake nothing else.
        text = as_yaml(study.spec.model_dump(mode="json", exclude_defaults=True))
    return _page(request, principal, text, Checked())


def begun_with(model: str, kind: str, rank: str) -> str:
    """The example with this model, kind of task and LoRA rank; what is empty stays."""
    lines = _EXAMPLE.splitlines(keepends=True)
    for k, line in enumerate(lines):
        if model.strip() and line.startswith("model:"):
            lines[k] = f"model: {{path: {json.dumps(model.strip(), ensure_ascii=False)}}}\n"
        elif kind in METRICS and line.startswith("  kind:"):
            lines[k] = f"  kind: {kind}\n"
        elif rank.isascii() and rank.isdigit() and line.startswith("budget:"):
            lines[k] = f"budget: {{lora_rank: {int(rank)}}}\n"
    return "".join(lines)


def _page(request: Request, principal: Principal, text: str, checked: Checked, status: int = 200) -> Response:
    shown = {"principal": principal, "place": "new", "text": text, "checked": checked}
    return templates.TemplateResponse(request, "new.html", shown, status_code=status)


Text = Annotated[str, Form(max_length=4 * LONGEST_TEXT)]


@router.post("/new/check")
def check_study(request: Request, ctx: ContextDep, text: Text = "") -> Response:
    """Check a text as it would be at its start; stores nothing."""
    require_same_origin(request)
    require_member(request, ctx, "check a study")
    return templates.TemplateResponse(request, "new_checked.html", {"checked": check(ctx, text)})


@router.post("/new")
def start_study(request: Request, ctx: ContextDep, text: Text = "") -> Response:
    """Create the study, or the group of studies; what is wrong is said beside the text."""
    require_same_origin(request)
    principal = require_member(request, ctx, "start a study")
    try:
        file = StudyFile(Path("study"), text)
        if file.is_group:
            place, _ = groups.create_group(ctx, principal, file.content)
            return RedirectResponse(f"/groups/{place.id}", status_code=303)
        study, _ = studies.create_study(ctx, principal, file.content)
    except ServiceError as error:
        return _page(request, principal, text, _refused(text, error), error.status)
    return RedirectResponse(f"/studies/{study.id}", status_code=303)


def check(ctx: Context, text: str) -> Checked:
    """The faults of a text, or what its study will be: budget, structures, work, memory, and what is predicted."""
    try:
        file = StudyFile(Path("study"), text)
        members = expand(file.content)[1] if file.is_group else [Member("", file.content, "", "")]
        planned, faults = [], list[Fault]()
        for member in members[:MOST_CHECKED]:
            try:
                planned.append(ctx.aside(plan_study, member.body, ctx.settings.data_roots))
            except InvalidStudy as error:
                faults += [member.located(fault) for fault in error.faults]
        if faults:
            raise InvalidStudy("it cannot start", list(dict.fromkeys(faults)))
    except ServiceError as error:
        return _refused(text, error)
    return _told(planned, len(members))


def _refused(text: str, error: ServiceError) -> Checked:
    try:
        file = StudyFile(Path("study"), text)
    except InvalidStudy:
        return Checked(error=error.detail)
    faults = [(file.line(f.pointer), f.pointer.removeprefix("#/").replace("/", "."), f.detail) for f in error.faults]
    return Checked(faults=sorted(faults, key=lambda f: f[0] or 0), error="" if faults else error.detail)


def _told(planned: list[Planned], count: int) -> Checked:
    first = planned[0]
    spec, plan = first.spec, first.plan
    facts: list[tuple[str, str]] = []
    if count > 1:
        facts.append(("Studies", f"{count}; what follows is the first one's"))
    structures = 0 if plan.groups else len(plan.pairs)
    searched = f"{structures} structures" if structures else f"groups {', '.join(plan.groups)}"
    facts += [
        ("Budget", f"{plan.max_parameters:,} parameters on {len(plan.shapes)} layers"),
        ("Search space", f"{searched}, {', '.join(n.replace('_', ' ') for n in spec.search_space.parameters())}"),
        ("Work", workload_of(spec).told()),
        ("Memory of a trial", "not known" if plan.memory is None else f"about {plan.memory.peak / GIB:.2f} GiB"),
    ]
    facts += [("Note", note) for note in plan.notes]
    predictions = [
        (name, ", ".join(map(str, ranking[0].structure)), ranking[0].reason)
        for name, ranking in first.predictions.items()
        if ranking
    ]
    return Checked(facts=facts, predictions=predictions)
