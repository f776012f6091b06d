"""Maintain the database that CDKA_DATABASE_URL names: ``python -m service.db upgrade|backup|restore|check|repair``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError

from ..errors import ServiceError
from ..settings import Settings, explain
from .backup import back_up
from .backup import restore as restore_rows
from .checks import check as find_faults
from .checks import repair as mend
from .engine import Database

program = typer.Typer(
    help="Maintain the database.", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False
)
File = Annotated[Path, typer.Argument(metavar="FILE")]


@contextmanager
def _opened() -> Iterator[Database]:
    """The database of the environment's settings.

    Raises:
        SystemExit: the settings are invalid or the database cannot be used; the message says why.
    """
    try:
        database = Database(Settings().database_url)
        try:
            yield database
        finally:
            database.close()
    except ValidationError as error:
        raise SystemExit(explain(error)) from None
    except OperationalError as error:
        raise SystemExit(f"The database does not answer: {error.orig}") from None
    except ServiceError as error:
        raise SystemExit(error.detail) from None


@program.command()
def upgrade() -> None:
    """Upgrade the schema to this release."""
    with _opened() as database:
        before = database.revision()
        database.upgrade()
        print(f"the schema is at revision {database.revision()} (was: {before or 'none'})")


@program.command()
def backup(file: File) -> None:
    """Write all rows to a file."""
    with _opened() as database:
        print(f"{back_up(database, file)} rows written to {file}")


@program.command()
def restore(file: File) -> None:
    """Fill an empty database from a backup."""
    with _opened() as database:
        rows = restore_rows(database, file)
        print(f"{rows} rows restored; the schema is at revision {database.revision()}")


@program.command()
def check() -> None:
    """Check schema, references and counts. Lists the problems and exits with 1."""
    with _opened() as database:
        if faults := find_faults(database):
            raise SystemExit("\n".join(faults))
        print(f"no problems found, at revision {database.revision()}")


@program.command()
def repair() -> None:
    """Mend what can be mended, and list what was done."""
    with _opened() as database:
        for line in mend(database):
            print(line)
        if faults := find_faults(database):
            raise SystemExit("\n".join(faults))
        print("no problems left")


if __name__ == "__main__":
    program(prog_name="cdka db")
