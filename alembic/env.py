"""Runs migrations on the database that ``service.db.engine.alembic_config`` (or CDKA_DATABASE_URL) names."""

from alembic import context

from service.db.engine import make_engine
from service.db.models import Base, UtcDateTime
from service.settings import Settings


def render_item(kind: str, item: object, autogen_context: object) -> str | bool:
    """Migrations stand alone: they name the database's type, not ours."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


url = context.config.attributes.get("url") or Settings().database_url
engine = make_engine(url)
with engine.connect() as connection:
    if engine.dialect.name == "sqlite":
        # A table that is copied and replaced must not take along the rows that refer to it.
        connection.connection.dbapi_connection.execute("PRAGMA foreign_keys=OFF")
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        compare_type=True,
        render_item=render_item,
    )
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
