"""``cdka trial``: read and steer single trials."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from . import session
from .session import AsJson, StudyId, TrialId

FOLLOW_SECONDS = 2.0
app = typer.Typer(help="Read and control single trials.", no_args_is_help=True)


@app.command("show")
def show_trial(trial_id: TrialId, as_json: AsJson = False) -> None:
    """Show one trial."""
    with session.connect() as client:
        found = client.trial(trial_id)
    columns = [
        "number",
        "phase",
        "state",
        "params",
        "metrics",
        "attempts",
        "failure.kind",
        "failure.message",
        "artifact",
    ]
    if as_json:
        session.print_json(found)
    else:
        session.show([found], columns, as_json=False)


@app.command()
def metrics(trial_id: TrialId, as_json: AsJson = False) -> None:
    """Show every value that a trial reported."""
    with session.connect() as client:
        session.show(client.metrics(trial_id), ["step", "name", "value", "reported_at"], as_json)


@app.command()
def logs(
    trial_id: TrialId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow until the attempt ends.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Number of the attempt. Default: the last.")] = None,
) -> None:
    """Show a trial's output: the end of it, or all of one attempt with --attempt."""
    with session.connect() as client:
        after = None if attempt is None else 0
        while True:
            found = client.log(trial_id, attempt=attempt, after=after)
            print(found.text, end="", flush=True)
            after, attempt = found.next, found.attempt
            if found.text:
                continue
            if not (follow and found.running):
                return
            time.sleep(FOLLOW_SECONDS)


@app.command()
def enqueue(
    study_id: StudyId,
    r1: Annotated[int, typer.Option(min=1)],
    r2: Annotated[int, typer.Option(min=1)],
    r: Annotated[int, typer.Option(min=1)],
    alpha: Annotated[float, typer.Option()],
    learning_rate: Annotated[float, typer.Option()],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A further parameter that the study searches."),
    ] = None,
) -> None:
    """Queue a configuration of your own. Prints the trial's id."""
    params: dict[str, Any] = {"r1": r1, "r2": r2, "r": r, "alpha": alpha, "learning_rate": learning_rate}
    with session.connect() as client:
        print(client.enqueue_trial(study_id, params | _named(set_)).id)


@app.command()
def clone(
    trial_id: TrialId,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A parameter to change, such as learning_rate=1e-4."),
    ] = None,
    warm: Annotated[bool, typer.Option("--warm", help="Start the training from the trial's adapter.")] = False,
) -> None:
    """Queue a trial's configuration again, with changes. Prints the new trial's id."""
    with session.connect() as client:
        print(client.clone_trial(trial_id, _named(set_), warm=warm).id)


def _named(entries: list[str] | None) -> dict[str, Any]:
    """The values of --set options by name."""
    found: dict[str, Any] = {}
    for entry in entries or []:
        name, equals, value = entry.partition("=")
        if not equals:
            raise typer.BadParameter(f"write --set NAME=VALUE, such as --set dropout=0.1; got {entry!r}")
        found[name] = _value(value)
    return found


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


@app.command()
def stop(trial_id: TrialId) -> None:
    """Stop one trial. Its study continues."""
    with session.connect() as client:
        print(client.stop_trial(trial_id).state)


@app.command()
def retry(trial_id: TrialId) -> None:
    """Queue a failed trial again."""
    with session.connect() as client:
        print(client.retry_trial(trial_id).state)


@app.command()
def fetch(
    trial_id: TrialId, out: Annotated[Path | None, typer.Option(help="Output file. Default: TRIAL.zip.")] = None
) -> None:
    """Download a trial's adapter, as PEFT saved it, as a zip file."""
    with session.connect() as client:
        print(client.fetch_adapter(trial_id, out or Path(f"{trial_id}.zip")))
