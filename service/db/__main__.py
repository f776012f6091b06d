"""Maintain the database that CDKA_DATABASE_URL names: ``python -m service.db upgrade|backup|restore|check``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy.exc import OperationalError

from ..errors import ServiceError
from ..settings import Settings, explain
from .backup import back_up, restore
from .checks import check
from .engine import Database


def main(argv: Sequence[str] | None = None) -> None:
    """Run one subcommand and print its outcome.

    Raises:
        SystemExit: with what was wrong.
    """
    parser = argparse.ArgumentParser(prog="cdka db", description="look after the database")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("upgrade", help="bring the schema up to date")
    actions.add_parser("check", help="see whether schema, references and counts are in order")
    for action, words in (("backup", "write everything to a file"), ("restore", "fill an empty database from one")):
        actions.add_parser(action, help=words).add_argument("file", type=Path)
    options = parser.parse_args(argv)
    try:
        database = Database(Settings().database_url)
        try:
            print(_do(options, database))
        finally:
            database.close()
    except ValidationError as error:
        raise SystemExit(explain(error)) from None
    except OperationalError as error:
        raise SystemExit(f"The database does not answer: {error.orig}") from None
    except ServiceError as error:
        raise SystemExit(error.detail) from None


def _do(options: argparse.Namespace, database: Database) -> str:
    if options.action == "upgrade":
        before = database.revision()
        database.upgrade()
        return f"the schema is at revision {database.revision()} (was: {before or 'none'})"
    if options.action == "backup":
        return f"{back_up(database, options.file)} rows written to {options.file}"
    if options.action == "restore":
        rows = restore(database, options.file)
        return f"{rows} rows restored; the schema is at revision {database.revision()}"
    if faults := check(database):
        raise SystemExit("\n".join(faults))
    return f"in order, at revision {database.revision()}"


if __name__ == "__main__":
    main(sys.argv[1:])
