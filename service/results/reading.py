"""Read a study's Pareto front, why it waits, and adapters."""

from __future__ import annotations

import posixpath
import tempfile
import zipfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import fsspec

from ..context.context import Context
from ..db.leases import Leases
from ..db.studies import Studies
from ..db.teams import Teams
from ..db.trials import Trials
from ..domain.pareto import pareto_front
from ..domain.records import Study, Trial, TrialCounts
from ..domain.shape import GIB
from ..domain.states import STUDY_ENDED, StudyState, TrialPhase, TrialState
from ..domain.study_spec import Direction, Objective
from ..errors import NotFound, Unavailable
from ..paths import is_inside
from ..studies.progress import search_trials
from ..tenancy.quotas import trial_fault

RUNNER_SEEN = timedelta(minutes=2)
# Adapters are megabytes; a much larger folder is not an adapter.
LARGEST_ADAPTER = 4 * GIB


def front(ctx: Context, study_id: str, team_id: str | None) -> tuple[list[Objective], list[Trial]]:
    """The objectives, and the Pareto front of the finished search trials, by number.

    Raises:
        NotFound: there is no such study in this team.
    """
    with ctx.db.read() as session:
        study = Studies(session).get(study_id, team_id)
        trials = Trials(session).of_study(study_id, TrialPhase.SEARCH)
    return study.spec.all_objectives, front_of(study.spec.all_objectives, trials)


def front_of(objectives: Sequence[Objective], trials: Sequence[Trial]) -> list[Trial]:
    """The Pareto front of finished trials, in their order."""
    done = [t for t in trials if t.state is TrialState.COMPLETED and all(o.metric in t.metrics for o in objectives)]
    signs = [-1.0 if o.direction is Direction.MAXIMIZE else 1.0 for o in objectives]
    points = [[s * t.metrics[o.metric] for s, o in zip(signs, objectives, strict=True)] for t in done]
    return [done[k] for k in pareto_front(points)]


def waiting_for(ctx: Context, study: Study, counts: TrialCounts) -> str | None:
    """Why a study with work has no running trial; ``None`` if it has one or has no work."""
    if study.state is StudyState.PAUSED or study.state in STUDY_ENDED:
        return None
    if any(state is TrialState.RUNNING for _, state in counts):
        return None
    queued = any(state is TrialState.QUEUED for _, state in counts)
    if not queued and search_trials(counts) >= study.planned:
        return None
    needs = study.spec.resources.shape
    with ctx.db.read() as session:
        team = Teams(session).get(study.team_id)
        fault = trial_fault(team, Teams(session).usage([team.id])[team.id], needs.gpus)
        runners = Leases(session).runners(None)
    if fault is not None:
        return f"its team's quota: {fault}"
    since = ctx.clock() - RUNNER_SEEN
    alive = [r for r in runners if r.last_seen_at >= since and r.team_id in (None, study.team_id)]
    if not alive:
        return "a runner: none has asked for work within the last two minutes (see: cdka work)"
    if not any(r.shape.holds(needs) for r in alive):
        most = max((r.shape for r in alive), key=lambda shape: (shape.gpus, shape.cpus))
        return f"a runner with {needs}; the largest of {len(alive)} that asked lately has {most}"
    return "a runner: those that could take its trials are busy"


def adapter_archive(ctx: Context, trial_id: str, team_id: str | None) -> tuple[Path, str]:
    """A trial's adapter as a zip file, and a name for it. The caller removes the file.

    Raises:
        NotFound: there is no such trial in this team, or it has no adapter.
        Unavailable: the artifact store does not answer.
    """
    with ctx.db.read() as session:
        trial = Trials(session).get(trial_id, team_id)
    if trial.artifact is None:
        raise NotFound(f"trial {trial.number} has no adapter: only completed trials have one")
    root = f"{ctx.settings.artifacts_url.rstrip('/')}/studies/{trial.study_id}"
    if not is_inside(trial.artifact, root):
        # A worker's URL must not open anything outside of the artifact store.
        raise NotFound(f"trial {trial.number}'s adapter is outside the artifact store")
    handle = tempfile.NamedTemporaryFile(prefix="cdka-adapter-", suffix=".zip", delete=False)  # noqa: SIM115
    try:
        with handle, zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive:
            files, folder = fsspec.url_to_fs(trial.artifact)
            names = [name for name in files.find(folder) if is_inside(name, folder)]
            if not names:
                raise NotFound(f"trial {trial.number}'s adapter no longer exists")
            if sum(files.size(name) or 0 for name in names) > LARGEST_ADAPTER:
                raise NotFound(f"trial {trial.number}'s folder is too large to be an adapter")
            for name in sorted(names):
                with files.open(name, "rb") as source, archive.open(posixpath.relpath(name, folder), "w") as target:
                    while piece := source.read(2**20):
                        target.write(piece)
    except BaseException as error:
        Path(handle.name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise Unavailable(f"the artifact store does not answer: {type(error).__name__}") from error
        raise
    return Path(handle.name), f"trial-{trial.number:05d}-adapter.zip"
