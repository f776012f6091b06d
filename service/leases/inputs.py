"""Record what a study's trials are trained on, and refuse a trial that is trained on something else."""

from __future__ import annotations

from ..context.context import Context
from ..db.retries import retried
from ..db.studies import Studies
from ..domain.inputs import Inputs, changes_told
from ..errors import InputsChanged
from .fences import held


@retried
def record_inputs(ctx: Context, lease_id: str, team_id: str | None, inputs: Inputs) -> Inputs:
    """Record the inputs of a lease's study; returns those that are recorded. The first ones count.

    Raises:
        NotFound: there was never such a lease in this team.
        LeaseLost: the lease is no longer held; nothing was changed.
        InputsChanged: the study began with other data or another base model.
    """
    now = ctx.clock()
    with ctx.db.write() as session:
        study = held(session, lease_id, team_id).study
        if study.inputs is None:
            Studies(session).record_inputs(study, inputs, now)
            return inputs
        differences = study.inputs.differences(inputs)
    if differences:
        raise InputsChanged(changes_told(differences))
    return study.inputs
