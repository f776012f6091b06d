"""Insert-or-update statements, built once for each database: building one costs more than running it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

_BUILDERS: dict[str, Callable[[Any], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class Upsert:
    """An insert-or-update statement, built for each supported database.

    Args:
        table: the mapped class.
        finish: builds the full statement from the database's own insert.
    """

    def __init__(self, table: Any, finish: Callable[[Any], Any]) -> None:
        self._statements = {name: finish(insert(table.__table__)) for name, insert in _BUILDERS.items()}

    def run(self, session: Session, rows: list[dict[str, Any]]) -> None:
        """Insert or update the rows."""
        session.connection().execute(self._statements[session.get_bind().dialect.name], rows)


def insert_ignoring(session: Session, table: Any) -> Any:
    """An insert that leaves existing rows unchanged."""
    return _BUILDERS[session.get_bind().dialect.name](table).on_conflict_do_nothing()
