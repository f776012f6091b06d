"""The command ``cdka``. Imports neither torch nor ray nor FastAPI, so that ``cdka --help`` answers at once.

Exit codes: 0 done; 1 the study failed or was cancelled; 2 wrong usage; 3 refused by the server (or an invalid file);
4 the server cannot be reached or started.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ServiceError, Unavailable
from ..schemas.study_file import StudyFile
from . import tables
from .commands import database, operation, session, studies, trials
from .commands.session import AsJson, console, errors, load_settings, print_json, require_extra
from .processes import Server

app = typer.Typer(
    help="Search Kronecker adapters: launch, watch and compare studies.", no_args_is_help=True, add_completion=True
)
app.add_typer(studies.app)
app.add_typer(operation.app)
app.add_typer(trials.app, name="trial")
app.add_typer(database.app, name="db")

StudyPath = Annotated[
    Path, typer.Argument(metavar="STUDY.yaml", help="A study file. See docs/reference/study-file.md.")
]


@contextmanager
def faults_located(file: StudyFile) -> Iterator[None]:
    """Print the faults that the server finds with their lines in the file."""
    try:
        yield
    except ServiceError as error:
        for fault in error.faults:
            errors.print(file.describe(fault), markup=False, highlight=False, soft_wrap=True)
        raise


@app.command()
def serve(
    pool: Annotated[bool, typer.Option("--pool/--no-pool", help="Also run trials on a local Ray.")] = True,
) -> None:
    """Run everything on this machine: API, dashboard and SQLite, and a pool on a local Ray."""
    require_extra("server", *(("workers",) if pool else ()))
    settings = load_settings()
    server = Server(settings, with_pool=pool)
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    server.start()
    # Whole lines, so that the address can be copied.
    print(f"API        {settings.server_url}/api/v1 (docs: {settings.server_url}/docs)")
    print(f"Dashboard  {server.login_told(sys.stdout)}", flush=True)
    try:
        server.supervise(stopping, lambda words: errors.print(words, markup=False))
    finally:
        server.stop()


@app.command()
def work() -> None:
    """Run the pool: it starts runners on the Ray cluster (RAY_ADDRESS) as the server needs them."""
    require_extra("workers")
    load_settings()
    raise typer.Exit(subprocess.call([sys.executable, "-m", "workers"]))


@app.command()
def submit(
    study: StudyPath,
    watch: Annotated[bool, typer.Option("--watch", help="Show progress until the study ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create a study from a file; with budgets, models, tasks or search.repeats, several linked ones."""
    file = StudyFile(study)
    with faults_located(file):
        file.check()
    if file.is_group:
        _submit_group(file, watch=watch, as_json=as_json)
        return
    with session.connect() as client:
        with faults_located(file):
            created = client.create_study(file.content)
        if as_json:
            print_json(created)
        else:
            print(created.id)
    if watch:
        studies.watch(created.id)


def _submit_group(file: StudyFile, *, watch: bool, as_json: bool) -> None:
    with session.connect() as client:
        with faults_located(file):
            created = client.create_group(file.content)
        if as_json:
            print_json(created)
        else:
            print(created.id)
        if not watch:
            return
        ended = []
        for one in created.studies:
            errors.print(one.name, markup=False)
            ended.append(tables.watch(client, one.id, errors))
        tables.print_group(client.group(created.id), console)
        failed = [one for one in ended if one.state != "completed"]
        for study_out in failed:
            errors.print(f"{study_out.name} is {study_out.state}: {study_out.reason}", markup=False)
        if failed:
            raise typer.Exit(1)


@app.command()
def validate(study: StudyPath) -> None:
    """Check a study file. Does not need a server; model and data are checked at submit."""
    file = StudyFile(study)
    with faults_located(file):
        file.check()
    print(f"{study.name} is valid. Model and data are checked at submit.")


@app.command()
def predict(study: StudyPath, as_json: AsJson = False) -> None:
    """Show what each predictor recommends under the study's budget. Trains and stores nothing."""
    file = StudyFile(study)
    with session.connect() as client, faults_located(file):
        found = client.predict(file.content)
    if as_json:
        print_json(found)
        return
    console.print(f"budget: {found.budget.max_parameters:,} parameters over {found.budget.adapted_layers} layers")
    for ranking in found.predictions:
        for table in tables.rankings_tables(ranking):
            console.print(table)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def adapter(context: typer.Context) -> None:
    """Inspect, export and merge saved adapters."""
    require_extra("adapter")
    # A process of its own: this command stays free of torch, which takes seconds to import.
    raise typer.Exit(subprocess.call([sys.executable, "-m", "cdka", "adapter", *context.args]))


@app.command()
def demo(
    trials: Annotated[int, typer.Option(min=1, help="Search trials.")] = 10,
    seeds: Annotated[int, typer.Option(min=1, help="Confirmation seeds per candidate.")] = 2,
    train: Annotated[int, typer.Option(min=20, help="Training articles.")] = 160,
    validation: Annotated[int, typer.Option(min=10, help="Validation articles.")] = 160,
    test: Annotated[int, typer.Option(min=10, help="Test articles; the search does not see them.")] = 320,
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens per article.")] = 64,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the server running until Ctrl-C.")] = False,
) -> None:
    """Run a study on real data: MiniLM on BBC news topics, with search, confirmation and comparison."""
    from .demo import Sizes, run_demo

    require_extra("server", "workers")
    sizes = Sizes(trials, seeds, train, validation, test, epochs, batch_size, max_length)
    raise typer.Exit(run_demo(sizes, keep=keep, console=console))


def main() -> None:
    """The entry point: errors become words and exit codes."""
    try:
        app()
    except Unavailable as error:
        errors.print(error.detail, markup=False, highlight=False, soft_wrap=True)
        sys.exit(4)
    except ServiceError as error:
        errors.print(error.detail, markup=False, highlight=False, soft_wrap=True)
        sys.exit(4 if error.status >= 500 else 3)
