"""A group of studies as one document: what they say together, then the report of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC

from markupsafe import Markup

from ..context.context import Context
from ..domain.group_results import Group
from ..domain.states import VerdictKind
from .groups import get_group
from .reports import SCHEMA, Report, as_html, as_markdown, as_object, templates
from .reports import report_of as study_report_of
from .sentences import Told

# The candidates that a group's table shows, in order.
TITLES = {"best": "Best found", "guideline": "Guideline", "lora": "LoRA"}
WORDS = {
    VerdictKind.BETTER: "searching won",
    VerdictKind.EQUAL: "practically equal",
    VerdictKind.WORSE: "the guideline won",
    VerdictKind.UNDECIDED: "open",
    VerdictKind.SAME: "the search found nothing better",
    VerdictKind.TOO_FEW_SEEDS: "too few seeds",
}


def report_of(ctx: Context, group_id: str, team_id: str | None, form: str) -> str:
    """The report as ``html``, ``md`` or ``json``.

    Raises:
        NotFound: there is no such group in this team.
    """
    group = get_group(ctx, group_id, team_id)
    reports = [study_report_of(ctx, point.study.id, team_id) for point in group.points]
    if form == "json":
        return _json(group, reports)
    if form == "md":
        return _render("group.markdown", group, [as_markdown(r) for r in reports], None)
    from . import pictures

    parts = [Markup(as_html(r, "study.html")) for r in reports]  # noqa: S704  # rendered here, text escaped
    return _render("group.html", group, parts, Markup(pictures.group(group)))  # noqa: S704


def shown(group: Group) -> list[str]:
    """The candidates that some study has, of those that the table shows."""
    return [name for name in TITLES if any(point.row(name) is not None for point in group.points)]


def _render(name: str, group: Group, parts: Sequence[str], image: Markup | None) -> str:
    text = templates.get_template(name).render(
        group=group,
        names=shown(group),
        titles=TITLES,
        words=WORDS,
        told=Told.of(group.points[0].study),
        parts=parts,
        image=image,
    )
    return text.strip() + "\n"


def _json(group: Group, reports: Sequence[Report]) -> str:
    body = {
        "report": SCHEMA,
        "made_at": group.made_at.astimezone(UTC).isoformat(),
        "id": group.id,
        "name": group.name,
        "axis": group.axis,
        "metric": group.metric,
        "direction": group.direction,
        "reason": group.reason,
        "gain": None if group.gain is None else asdict(group.gain),
        "pays_from": group.pays_from,
        "sentences": group.sentences,
        "studies": [
            {
                "label": point.label,
                "gain": None if point.gain is None else asdict(point.gain),
                "verdict": point.kind,
                **as_object(report),
            }
            for point, report in zip(group.points, reports, strict=True)
        ],
    }
    return json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
