"""Prepare a server's database and tokens before it serves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..context.context import Context
from ..domain.records import Role
from ..errors import ServiceError
from ..paths import make_private, write_secret
from ..settings import Settings
from ..tenancy.sealing import WrongKey, sealer
from ..tenancy.tokens import DEFAULT_TEAM, adopt_token, authenticate, create_token, ensure_team
from ..tenancy.webhooks import seal_secrets


def prepare_database(ctx: Context) -> None:
    """Upgrade an embedded SQLite schema; reject an outdated PostgreSQL schema.

    Raises:
        SystemExit: with the command to run, or because CDKA_SECRET_KEY_FILE has no usable key.
    """
    if ctx.db.is_sqlite:
        close_to_others(ctx.settings)
        ctx.db.upgrade()
    elif not ctx.db.is_current():
        raise SystemExit(
            f"The database schema is at revision {ctx.db.revision() or 'none'}, this server's is {ctx.db.newest()}.\n"
            "Back it up, then upgrade it:\n    cdka db backup FILE\n    cdka db upgrade"
        )
    try:
        if ctx.settings.secret_key_file is not None:
            sealer(ctx.settings).check()
        seal_secrets(ctx)
    except WrongKey as error:
        raise SystemExit(error.detail) from None


def close_to_others(settings: Settings) -> None:
    """Let only the owner into the home of an embedded server, and into its database."""
    make_private(settings.home)
    file = Path(settings.database_url.removeprefix("sqlite:///"))
    for path in (file, file.with_name(file.name + "-wal"), file.with_name(file.name + "-shm")):
        if path.is_file():
            path.chmod(0o600)


def embedded_tokens(ctx: Context) -> None:
    """Create the tokens of an embedded server in files that only their owner can read, unless valid ones exist."""
    ensure_team(ctx, DEFAULT_TEAM)
    # The pool beside an embedded server serves all its teams.
    for role, name in ((Role.ADMIN, "admin-token"), (Role.POOL, "worker-token")):
        file = ctx.settings.home / name
        if file.exists() and _is_valid(ctx, file.read_text().strip(), role):
            continue
        _, secret = create_token(ctx, DEFAULT_TEAM, f"embedded {role}", role)
        write_secret(file, secret)


def _is_valid(ctx: Context, secret: str, role: Role) -> bool:
    try:
        return authenticate(ctx, secret).role is role
    except ServiceError:
        return False


def prepare(ctx: Context, tokens: Sequence[tuple[Role, Path]]) -> None:
    """Upgrade the schema and make the tokens in files valid; prints what was done.

    Raises:
        SystemExit: a file cannot be read.
    """
    before = ctx.db.revision()
    ctx.db.upgrade()
    print(f"the schema is at revision {ctx.db.revision()} (was: {before or 'none'})")
    ensure_team(ctx, DEFAULT_TEAM)
    for role, file in tokens:
        is_new = adopt_token(ctx, DEFAULT_TEAM, f"deployed {role}", role, _secret(file))
        print(f"the {role} token in {file} is valid {'now' if is_new else 'already'}")


def _secret(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError as error:
        raise SystemExit(f"The token file {file} cannot be read: {error.strerror}") from None
