"""``cdka db``: look after the database that CDKA_DATABASE_URL names, beside the server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Upgrade, back up, restore and check the database.", no_args_is_help=True)
File = Annotated[Path, typer.Argument(metavar="FILE")]


def _run(*arguments: str) -> None:
    # A process of its own: this command stays free of SQLAlchemy and all that the server imports.
    code = subprocess.call([sys.executable, "-m", "service.db", *arguments])
    raise typer.Exit(3 if code else 0)


@app.command()
def upgrade() -> None:
    """Bring the schema up to date."""
    _run("upgrade")


@app.command()
def backup(file: File) -> None:
    """Write everything but artifacts to a file, as of one moment; the service may go on meanwhile."""
    _run("backup", str(file))


@app.command()
def restore(file: File) -> None:
    """Fill an empty database from a backup, of this release or an older one, on SQLite or PostgreSQL."""
    _run("restore", str(file))


@app.command()
def check() -> None:
    """See whether schema, references, counts, leases and events are in order; exit 3 with what is not."""
    _run("check")
