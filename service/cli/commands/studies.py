"""``cdka`` on studies: list, show, steer, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import tables
from . import session
from .session import AsJson, StudyId

app = typer.Typer()


@app.command()
def studies(
    state: Annotated[list[str] | None, typer.Option(help="Only studies in this state; repeat for more.")] = None,
    name: Annotated[str | None, typer.Option(help="Only studies whose name contains this.")] = None,
    as_json: AsJson = False,
) -> None:
    """List studies, newest first."""
    with session.connect() as client:
        found = list(client.studies(state=state or (), name=name))
    if as_json:
        session.print_json(found)
    else:
        session.console.print(tables.studies_table(found))


@app.command()
def show(study_id: StudyId, as_json: AsJson = False) -> None:
    """Show a study and its trials."""
    with session.connect() as client:
        study = client.study(study_id)
        trials = list(client.trials(study_id))
    if as_json:
        found = {"study": study.model_dump(mode="json"), "trials": [t.model_dump(mode="json") for t in trials]}
        print(json.dumps(found, indent=2))
        return
    session.console.print(tables.studies_table([study]))
    for words in (study.reason, study.waiting_for and f"waiting for {study.waiting_for}"):
        if words:
            session.console.print(words, markup=False)
    session.console.print(tables.trials_table(trials, study.spec.objective.metric))
    for words in tables.inputs_told(study):
        session.console.print(words, markup=False, highlight=False)


@app.command()
def watch(study_id: StudyId) -> None:
    """Show a study's progress until it ends, then the comparison. Exits 1 if the study did not complete."""
    with session.connect() as client:
        ended = tables.watch(client, study_id, session.errors)
        tables.print_comparison(client.comparison(study_id), session.console)
    if ended.state != "completed":
        session.errors.print(f"the study is {ended.state}: {ended.reason}", markup=False)
        raise typer.Exit(1)


@app.command()
def pause(
    study_id: StudyId,
    now: Annotated[bool, typer.Option("--now", help="Stop running trials and queue them again.")] = False,
) -> None:
    """Pause a study. Running trials finish unless --now is given."""
    with session.connect() as client:
        print(client.pause_study(study_id, drain=not now).state)


@app.command()
def resume(study_id: StudyId) -> None:
    """Resume a paused study."""
    with session.connect() as client:
        print(client.resume_study(study_id).state)


@app.command()
def cancel(study_id: StudyId) -> None:
    """Cancel a study."""
    with session.connect() as client:
        print(client.cancel_study(study_id).state)


@app.command()
def extend(
    study_id: StudyId,
    trials: Annotated[int, typer.Argument(help="Total number of search trials, including finished ones.")],
) -> None:
    """Add trials to a study. A completed study resumes."""
    with session.connect() as client:
        found = client.update_study(study_id, trials=trials)
    print(f"{found.state}: {found.search.finished} of {found.search.planned} trials")


@app.command()
def update(
    study_id: StudyId,
    name: Annotated[str | None, typer.Option()] = None,
    priority: Annotated[
        int | None, typer.Option(help="Studies with a higher priority run first within the team.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(help="Trials that run at the same time.")] = None,
    retries: Annotated[int | None, typer.Option(help="Further attempts after an error.")] = None,
    limits: Annotated[str | None, typer.Option(help='As JSON, such as {"hours": 12}; replaces all limits.')] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="Seeds of each candidate in all; added while the question of the confirmation is open."),
    ] = None,
) -> None:
    """Change a study. It may be running."""
    changes: dict[str, Any] = {"name": name, "priority": priority, "concurrency": concurrency, "retries": retries}
    changes["seeds"] = seeds
    if limits is not None:
        try:
            changes["limits"] = json.loads(limits)
        except json.JSONDecodeError as error:
            raise typer.BadParameter(f"--limits is not JSON: {error}") from None
    given = {k: v for k, v in changes.items() if v is not None}
    if not given:
        raise typer.BadParameter("name at least one change; see: cdka update --help")
    with session.connect() as client:
        print(client.update_study(study_id, **given).state)


@app.command()
def delete(
    study_id: StudyId,
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove rows and adapters now instead of after CDKA_PURGE_HOURS.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a study with its trials and adapters."""
    with session.connect() as client:
        study = client.study(study_id)
        if not yes:
            typer.confirm(f"Delete study {study.name!r} with its {study.search.finished} trials?", abort=True)
        client.delete_study(study_id, purge=purge)


@app.command()
def events(
    study_id: StudyId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow until the study ends.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Only events after this one.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Print a study's events. With --json, one object per line."""
    with session.connect() as client:
        found = client.watch(study_id, after=after) if follow else client.events(study_id, after=after)
        for event in found:
            if as_json:
                print(event.model_dump_json(), flush=True)
            else:
                said = " ".join(f"{k}={v}" for k, v in event.data.items() if v is not None and k != "trial_id")
                print(f"{event.number:>6}  {event.at:%H:%M:%S}  {event.kind:<15}  {said}", flush=True)


@app.command()
def export(
    study_id: StudyId,
    form: Annotated[str, typer.Option("--format", help="csv, json or optuna.")] = "csv",
    out: Annotated[Path | None, typer.Option(help="Output file. Default: ID.csv, ID.json or ID.db.")] = None,
) -> None:
    """Export a study: trials as CSV, everything as JSON, or a storage for Optuna."""
    suffix = {"optuna": "db"}.get(form, form)
    with session.connect() as client:
        print(client.export_study(study_id, out or Path(f"{study_id}.{suffix}"), form))


@app.command()
def report(
    study_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of studies.")],
    out: Annotated[
        Path, typer.Option(help="File ending in .html, .md or .json; with several studies, a folder for HTML files.")
    ] = Path("report.html"),
) -> None:
    """Write a report to hand on: the answer, its numbers, and all that is needed to repeat it."""
    form = out.suffix.removeprefix(".").lower()
    if len(study_ids) == 1 and form not in ("html", "md", "json"):
        raise typer.BadParameter(f"{out} must end in .html, .md or .json", param_hint="--out")
    with session.connect() as client:
        if len(study_ids) == 1:
            print(client.write_report(study_ids[0], out, form))
            return
        if form and not out.is_dir():
            raise typer.BadParameter(f"with several studies --out is a folder; {out} looks like a file")
        out.mkdir(parents=True, exist_ok=True)
        for study_id in study_ids:
            print(client.write_report(study_id, out / f"{study_id}.html"))


@app.command()
def fetch(
    study_id: StudyId,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("adapter"),
) -> None:
    """Download the adapter of the best configuration found, with its tokenizer and class names."""
    with session.connect() as client:
        print(client.fetch_best(study_id, out))


@app.command()
def front(study_id: StudyId, as_json: AsJson = False) -> None:
    """Show the Pareto front."""
    with session.connect() as client:
        found = client.front(study_id)
    if as_json:
        session.print_json(found)
    else:
        columns = ["number", "params", *(f"metrics.{o.metric}" for o in found.objectives), "id"]
        session.show(found.trials, columns, as_json=False)


@app.command()
def compare(study_ids: Annotated[list[str], typer.Argument(metavar="ID...")], as_json: AsJson = False) -> None:
    """Compare the best configuration found with each predictor's choice and the baselines."""
    with session.connect() as client:
        found = [client.comparison(study_ids[0])] if len(study_ids) == 1 else client.compare(*study_ids)
    if as_json:
        session.print_json(found[0] if len(found) == 1 else found)
        return
    for comparison in found:
        tables.print_comparison(comparison, session.console)


@app.command()
def group(
    group_id: Annotated[str, typer.Argument(metavar="GROUP", help="The group's id.")],
    report: Annotated[
        Path | None, typer.Option(help="Also write a report of all its studies: a file in .html, .md or .json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show linked studies as one answer: where searching pays."""
    form = "" if report is None else report.suffix.removeprefix(".").lower()
    if report is not None and form not in ("html", "md", "json"):
        raise typer.BadParameter(f"{report} must end in .html, .md or .json", param_hint="--report")
    with session.connect() as client:
        found = client.group(group_id)
        if report is not None:
            client.write_group_report(group_id, report, form)
    if as_json:
        session.print_json(found)
    else:
        tables.print_group(found, session.console)


@app.command()
def record(as_json: AsJson = False) -> None:
    """Show how the team's predictors fared in all its confirmed studies."""
    with session.connect() as client:
        found = client.predictors_record()
    if as_json:
        session.print_json(found)
    elif found:
        session.console.print(tables.record_table(found))
    else:
        print("No study has been confirmed yet.")


@app.command()
def samplers(as_json: AsJson = False) -> None:
    """List the samplers with their options (search.sampler_options)."""
    with session.connect() as client:
        _strategies(client.samplers(), as_json)


@app.command()
def pruners(as_json: AsJson = False) -> None:
    """List the pruners with their options (search.pruner_options)."""
    with session.connect() as client:
        _strategies(client.pruners(), as_json)


def _strategies(found: list[Any], as_json: bool) -> None:
    if as_json:
        session.print_json(found)
    else:
        session.console.print(tables.strategies_table(found))
