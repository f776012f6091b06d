"""The engine, the one commit, and the schema's version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from ..errors import Unavailable

BUSY_TIMEOUT_MS = 15_000
_BEGIN = "sqlite_begin"


def make_engine(url: str) -> Engine:
    """An engine for SQLite (write-ahead log, busy timeout, foreign keys) or PostgreSQL (psycopg 3)."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, connect_args={"check_same_thread": False}, pool_size=20, max_overflow=20)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    return create_engine(parsed, pool_size=10, max_overflow=10, pool_pre_ping=True)


def _configure_sqlite(connection: Any, _: Any) -> None:
    # The driver's own transaction control would begin late and commit early; SQLAlchemy's begin event does it.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at once: a read that later turns into a write could only fail.
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get(_BEGIN, 'DEFERRED')}")


class Database:
    """Sessions on one engine: ``read`` never commits, ``write`` commits once, at the end, or not at all."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = make_engine(url)
        self._writer = self.engine.execution_options(**{_BEGIN: "IMMEDIATE"})

    @property
    def is_sqlite(self) -> bool:
        """Whether this is the embedded database."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for reading.

        Raises:
            Unavailable: the database does not answer.
        """
        with self._translated(), Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose changes are committed together when the block ends, and rolled back if it raises.

        Raises:
            Unavailable: the database does not answer; nothing was changed.
        """
        with self._translated(), Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OperationalError as error:
            raise Unavailable("the database does not answer; nothing was changed, try again") from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise Unavailable("the connection to the database was lost; try again") from error
            raise

    def ping(self) -> None:
        """One statement.

        Raises:
            Unavailable: the database does not answer.
        """
        with self.read() as session:
            session.execute(text("SELECT 1"))

    def revision(self) -> str | None:
        """The schema's revision; ``None`` for an empty database."""
        with self.engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    def upgrade(self) -> None:
        """``alembic upgrade head``: the only way the schema comes to be."""
        command.upgrade(alembic_config(self.url), "head")

    def is_current(self) -> bool:
        """Whether the schema is at the newest revision."""
        return self.revision() == ScriptDirectory.from_config(alembic_config(self.url)).get_current_head()


def migrations_directory() -> Path:
    """Where the migrations lie: inside the package when installed, at the top of the repository in a checkout."""
    installed = Path(__file__).parent / "migrations"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "alembic"


def alembic_config(url: str) -> Config:
    """Alembic's configuration for one database."""
    config = Config()
    config.set_main_option("script_location", str(migrations_directory()))
    config.attributes["url"] = url
    return config
