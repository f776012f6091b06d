"""Create groups of linked studies."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..context.context import Context
from ..domain.faults import schema_faults
from ..domain.group_spec import Grouping, expand
from ..domain.ids import new_id
from ..domain.records import Principal, Study
from ..domain.vocabulary import Name
from ..errors import Fault, InvalidStudy
from .plans import Planned, plan_study
from .studies import store

_NAME: TypeAdapter[str] = TypeAdapter(Name)


def create_group(ctx: Context, caller: Principal, body: Any) -> tuple[Grouping, list[tuple[Study, Planned]]]:
    """Validate every study of a group in full, then record them all.

    Returns the first study's place in the group, and the studies.

    Raises:
        InvalidStudy: with every fault; nothing was stored.
        QuotaExceeded: the team's quota of open studies does not admit all of them.
    """
    axis, members = expand(body)
    try:
        name = _NAME.validate_python(body.get("name"))
    except ValidationError as error:
        wrong = [Fault("#/name", fault.detail) for fault in schema_faults(error)]
        raise InvalidStudy("the group has 1 fault; nothing was stored", wrong) from error
    planned: list[Planned] = []
    faults: list[Fault] = []
    for member in members:
        try:
            planned.append(ctx.aside(plan_study, member.body, ctx.settings.data_roots))
        except InvalidStudy as error:
            faults += [member.located(fault) for fault in error.faults]
    if faults:
        unique = list(dict.fromkeys(faults))
        raise InvalidStudy(f"the group has {len(unique)} fault{'s' * (len(unique) != 1)}; nothing was stored", unique)
    group_id = new_id(ctx.clock())
    places = [
        Grouping(id=group_id, name=name, axis=axis, label=member.label, position=k, of=len(members))
        for k, member in enumerate(members)
    ]
    stored = store(ctx, caller, list(zip(planned, places, strict=True)))
    return places[0], list(zip(stored, planned, strict=True))
