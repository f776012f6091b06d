"""``cdka db``: look after the database that CDKA_DATABASE_URL names, beside the server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from .session import require_extra

app = typer.Typer(help="Upgrade, back up, restore and check the database.", no_args_is_help=True)
File = Annotated[Path, typer.Argument(metavar="FILE")]


def _run(*arguments: str) -> None:
    require_extra("server")
    # A process of its own: this command stays free of SQLAlchemy and all that the server imports.
    code = subprocess.call([sys.executable, "-m", "service.db", *arguments])
    raise typer.Exit(3 if code else 0)


@app.command()
def upgrade() -> None:
    """Upgrade the schema to this release."""
    _run("upgrade")


@app.command()
def backup(file: File) -> None:
    """Write all rows to a file while the service runs. Does not contain artifacts."""
    _run("backup", str(file))


@app.command()
def restore(file: File) -> None:
    """Fill an empty database from a backup of this or an older release."""
    _run("restore", str(file))


@app.command()
def check() -> None:
    """Check schema, references, counts, leases and events. Exits 3 and lists what is wrong."""
    _run("check")


@app.command()
def repair() -> None:
    """Mend counts, and measurements of trials that no page can show. Lists what was done."""
    _run("repair")
