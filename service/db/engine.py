"""The engine, transactions and schema migrations."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DataError, DBAPIError, DisconnectionError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from ..errors import Contention, InvalidRequest, Overloaded, Unavailable

BUSY_TIMEOUT_MS = 10_000
STATEMENT_TIMEOUT_MS = 15_000
LOCK_TIMEOUT_MS = 10_000
IDLE_TRANSACTION_TIMEOUT_MS = 60_000
POOL_SIZE = 20
POOL_TIMEOUT_SECONDS = 10
FRESH_SECONDS = 2.0
_RETURNED = "returned_at"
_BEGIN = "sqlite_begin"
# PostgreSQL: serialization failure, deadlock, lock not available. A retry may succeed.
_CONTENTION = frozenset({"40001", "40P01", "55P03"})
_DISK_FULL = "53100"
# SQLite's primary result codes of the same kinds; a disk that fills up during a write is an I/O error.
_SQLITE_CONTENTION = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_SQLITE_FULL = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})


def make_engine(url: str) -> Engine:
    """An engine for SQLite (write-ahead log, busy timeout, foreign keys) or PostgreSQL (psycopg 3); a bounded pool."""
    parsed = make_url(url)
    pool: dict[str, Any] = {"pool_size": POOL_SIZE, "max_overflow": 0, "pool_timeout": POOL_TIMEOUT_SECONDS}
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            _own(Path(parsed.database))
        engine = create_engine(parsed, connect_args={"check_same_thread": False}, **pool)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    options = (
        f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={LOCK_TIMEOUT_MS} "
        f"-c idle_in_transaction_session_timeout={IDLE_TRANSACTION_TIMEOUT_MS}"
    )
    connect = {"connect_timeout": 5, "options": options, "application_name": "cdka"}
    engine = create_engine(parsed, connect_args=connect, **pool)
    event.listen(engine, "checkin", _note_return)
    event.listen(engine, "checkout", _ping_if_stale)
    return engine


def _note_return(connection: Any, record: Any) -> None:
    record.info[_RETURNED] = time.monotonic()


def _ping_if_stale(connection: Any, record: Any, _: Any) -> None:
    """Test an idle connection before use, so that a restarted database causes no errors.

    A recently used connection is not tested: that would double the round trips of short reads.
    """
    if time.monotonic() - record.info.get(_RETURNED, 0.0) < FRESH_SECONDS:
        return
    try:
        connection.execute("SELECT 1")
        connection.rollback()
    except Exception as error:
        raise DisconnectionError from error


def _configure_sqlite(connection: Any, _: Any) -> None:
    # The driver's transaction control begins late and commits early; SQLAlchemy's begin event replaces it.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at once, because upgrading a read to a write may fail.
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get(_BEGIN, 'DEFERRED')}")


class _WriterTurns:
    """Orders the writers of one SQLite file: threads of this process wait here without holding a connection.

    SQLite itself makes writers poll, each holding a connection and in no order, so under load some of them time out.
    Writers of other processes still wait that way (``busy_timeout``).
    """

    def __init__(self) -> None:
        self._lock = Lock()

    def begin(self) -> None:
        """Wait for the turn.

        Raises:
            Contention: other writers took longer than ``BUSY_TIMEOUT_MS``.
        """
        if not self._lock.acquire(timeout=BUSY_TIMEOUT_MS / 1000):
            raise Contention("another writer was in the way; nothing was changed, try again")

    def end(self) -> None:
        """Let the next writer proceed. Any thread may call this."""
        self._lock.release()


_turns_lock = Lock()
_turns: WeakValueDictionary[str, _WriterTurns] = WeakValueDictionary()


def _turns_of(url: str) -> _WriterTurns:
    """The turns of one SQLite file, shared within this process."""
    with _turns_lock:
        return _turns.setdefault(url, _WriterTurns())


class UnitOfWork:
    """One transaction for all reads and writes while it is active, across several blocks."""

    def __init__(self) -> None:
        self.session: Session | None = None
        # Whether this unit holds the turn to write.
        self.writes = False


_unit: ContextVar[UnitOfWork | None] = ContextVar("unit_of_work", default=None)


class Database:
    """Sessions on one engine: ``read`` never commits, ``write`` commits once, at the end, or not at all."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = make_engine(url)
        self._turns = _turns_of(url) if self.is_sqlite else None
        self._writer = self.engine.execution_options(**{_BEGIN: "IMMEDIATE"})
        # One block reads one snapshot, as in SQLite.
        repeatable = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        self._reader = self.engine.execution_options(**repeatable)
        alone = {} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"}
        self._looker = self.engine.execution_options(**alone)

    def close(self) -> None:
        """Close every idle connection of the pool."""
        self.engine.dispose()

    @property
    def is_sqlite(self) -> bool:
        """Whether this is the embedded database."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for reading, which sees the database as of one moment.

        Raises:
            Unavailable: the database does not answer.
        """
        unit = _unit.get()
        if unit is not None and unit.session is not None:
            yield unit.session
            return
        with self._translated(), Session(self._reader, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def look(self) -> Iterator[Session]:
        """A session for a single read statement, without the round trips of a transaction.

        Raises:
            Unavailable: the database does not answer.
        """
        with self._translated(), Session(self._looker, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose changes are committed together when the block ends, and rolled back if it raises.

        Raises:
            Contention: another writer was in the way; nothing was changed.
            Unavailable: the database does not answer; nothing was changed.
        """
        unit = _unit.get()
        if unit is not None:
            with self._translated():
                if unit.session is None:
                    if self._turns is not None:
                        self._turns.begin()
                        unit.writes = True
                    unit.session = Session(self._writer, expire_on_commit=False)
                with unit.session.begin_nested():
                    yield unit.session
                    unit.session.flush()
            return
        with (
            self._turn(),
            self._translated(),
            Session(self._writer, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self._turns is None:
            yield
            return
        self._turns.begin()
        try:
            yield
        finally:
            self._turns.end()

    @property
    def in_unit(self) -> bool:
        """Whether blocks of this context join the transaction of a unit of work."""
        return _unit.get() is not None

    def begin_unit(self) -> tuple[UnitOfWork, Token[UnitOfWork | None]]:
        """From here on, blocks join one transaction (begun by the first write) until :meth:`end_unit`."""
        unit = UnitOfWork()
        return unit, _unit.set(unit)

    def leave_unit(self, token: Token[UnitOfWork | None]) -> None:
        """From here on, blocks have transactions of their own again."""
        _unit.reset(token)

    def end_unit(self, unit: UnitOfWork, *, commit: bool) -> None:
        """Commit or roll back all that was done in the unit.

        Raises:
            IntegrityError: a constraint forbids it; nothing was changed.
            Unavailable: as for :meth:`write`.
        """
        session, unit.session = unit.session, None
        try:
            if session is None:
                return
            with self._translated(), session:
                if commit:
                    session.commit()
                else:
                    session.rollback()
        finally:
            if unit.writes and self._turns is not None:
                unit.writes = False
                self._turns.end()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except PoolTimeout as error:
            raise Overloaded("the server is busy: every connection to the database is in use; try again") from error
        except OperationalError as error:
            raise _explain(error) from error
        except DataError as error:
            raise InvalidRequest(f"a value cannot be stored: {error.orig}") from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise Unavailable("the connection to the database was lost; try again") from error
            raise

    def ping(self) -> None:
        """Check the connection with one statement.

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
        """``alembic upgrade head``, the only way the schema is created."""
        command.upgrade(alembic_config(self.url), "head")

    def is_current(self) -> bool:
        """Whether the schema is at the newest revision."""
        return self.revision() == self.newest()

    def newest(self) -> str | None:
        """The newest revision among this release's migrations."""
        return ScriptDirectory.from_config(alembic_config(self.url)).get_current_head()


def _explain(error: OperationalError) -> Unavailable:
    state, code = getattr(error.orig, "sqlstate", None), getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    if state in _CONTENTION or code in _SQLITE_CONTENTION:
        return Contention("another writer was in the way; nothing was changed, try again")
    if state == _DISK_FULL or code in _SQLITE_FULL:
        return Unavailable("the database's disk is full; nothing was changed; free some space, then try again")
    return Unavailable("the database does not answer; nothing was changed, try again")


def migrations_directory() -> Path:
    """The folder of migrations: inside the installed package, or at the top of a checkout."""
    installed = Path(__file__).parent / "migrations"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "alembic"


def alembic_config(url: str) -> Config:
    """Alembic's configuration for one database."""
    config = Config()
    config.set_main_option("script_location", str(migrations_directory()))
    config.attributes["url"] = url
    return config


def _own(file: Path) -> None:
    """Make an SQLite file that only its owner can read; its journals take the same permissions."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
