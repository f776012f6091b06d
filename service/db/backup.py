"""Back up a database to one file and restore it, on SQLite and PostgreSQL and from any schema revision.

The file is gzipped JSON lines: a header (format, schema revision), then for every table a line with its name and
columns, followed by its rows, and a closing line with the number of rows. Tables are reflected, so a backup made
by an older release restores into its own revision and is then migrated like any other database.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Connection, DateTime, MetaData, Table, insert, select

from ..errors import Conflict, InvalidRequest
from .engine import Database, alembic_config

FORMAT = "cdka-backup"
VERSION = 1
_BATCH = 500
_VERSION_TABLE = "alembic_version"


def back_up(database: Database, file: Path) -> int:
    """Write a snapshot of all rows to ``file`` while the service runs; returns the number of rows.

    The file gets its name only when it is complete, and only its owner can read it.

    Raises:
        Conflict: the database has no schema.
    """
    part = file.with_name(file.name + ".part")
    # Of a former attempt; what it held, and its permissions, are not kept.
    part.unlink(missing_ok=True)
    with database.engine.connect() as connection:
        if not database.is_sqlite:
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        revision = _revision(connection)
        if revision is None:
            raise Conflict("the database has no schema; run: cdka db upgrade")
        rows = 0
        owned = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(owned, "wb") as raw, gzip.open(raw, "wt", encoding="utf-8") as stream:
            for line in _lines(connection, revision):
                stream.write(json.dumps(line, separators=(",", ":")) + "\n")
                rows += isinstance(line, list)
            stream.write(json.dumps({"rows": rows}) + "\n")
    part.replace(file)
    return rows


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _tables(connection: Connection) -> list[Table]:
    metadata = MetaData()
    metadata.reflect(connection)
    return [t for t in metadata.sorted_tables if t.name != _VERSION_TABLE]


def _lines(connection: Connection, revision: str) -> Iterator[dict[str, Any] | list[Any]]:
    yield {"format": FORMAT, "version": VERSION, "revision": revision}
    for table in _tables(connection):
        yield {"table": table.name, "columns": [c.name for c in table.columns]}
        for row in connection.execution_options(yield_per=_BATCH).execute(select(table)):
            yield [_plain(value) for value in row]


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    return value


def restore(database: Database, file: Path) -> int:
    """Fill an empty database from ``file`` in one transaction and migrate it to this release; returns the row count.

    Raises:
        Conflict: the database is not empty; nothing was changed.
        InvalidRequest: the file is not a complete backup; the database is as empty as before.
    """
    if database.revision() is not None:
        raise Conflict("the database is not empty: restore into a new one, and point CDKA_DATABASE_URL at it")
    try:
        return _restored(database, file)
    except BaseException:
        # So that the next attempt finds an empty database.
        _empty(database)
        raise


def _empty(database: Database) -> None:
    """Remove the schema of a database without rows of ours."""
    if database.revision() is not None:
        command.downgrade(alembic_config(database.url), "base")
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {_VERSION_TABLE}")


def _restored(database: Database, file: Path) -> int:
    try:
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            header = json.loads(next(stream))
            if header.get("format") != FORMAT or header.get("version") != VERSION:
                raise InvalidRequest(f"{file} is not a backup of this service")
            command.upgrade(alembic_config(database.url), header["revision"])
            with database.engine.begin() as connection:
                rows = _load(connection, (json.loads(line) for line in stream))
    except (OSError, EOFError, ValueError, StopIteration) as error:
        raise InvalidRequest(f"{file} is not a complete backup: {error or 'it is empty'}") from error
    database.upgrade()
    return rows


def _load(connection: Connection, lines: Iterator[Any]) -> int:
    tables = {t.name: t for t in _tables(connection)}
    table: Table | None = None
    columns: list[Column[Any]] = []
    batch: list[dict[str, Any]] = []
    rows = 0

    def flush() -> None:
        if table is not None and batch:
            connection.execute(insert(table), batch)
            batch.clear()

    for line in lines:
        if isinstance(line, list):
            batch.append({c.name: _typed(c.type, value) for c, value in zip(columns, line, strict=True)})
            rows += 1
            if len(batch) >= _BATCH:
                flush()
            continue
        flush()
        if "rows" in line:
            if line["rows"] != rows:
                raise ValueError(f"it declares {line['rows']} rows but has {rows}")
            return rows
        table = tables[line["table"]]
        columns = [table.columns[name] for name in line["columns"]]
    raise ValueError("the closing line is missing")


def _typed(kind: Any, value: Any) -> Any:
    return datetime.fromisoformat(value) if isinstance(kind, DateTime) and value is not None else value
