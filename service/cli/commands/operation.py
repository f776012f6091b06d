"""``cdka token``, ``team``, ``webhook``, ``workers``, ``audit``: who may do what, and what is going on."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from . import session
from .session import AsJson

app = typer.Typer()
tokens = typer.Typer(help="Create, list, rotate and revoke tokens.", no_args_is_help=True)
teams = typer.Typer(help="Manage teams, their shares and quotas.", no_args_is_help=True)
webhooks = typer.Typer(help="Manage webhooks that receive a team's events.", no_args_is_help=True)
app.add_typer(tokens, name="token")
app.add_typer(teams, name="team")
app.add_typer(webhooks, name="webhook")

Weight = Annotated[float | None, typer.Option(help="The team's share of the cluster, relative to other teams.")]
Most = Annotated[int | None, typer.Option(min=0)]
MostGpus = Annotated[float | None, typer.Option(min=0)]
QUOTAS = ("max_running_trials", "max_gpus", "max_studies", "max_storage_bytes")


@tokens.command("create")
def create_token(
    name: Annotated[str, typer.Option(help="What the token is for.")],
    role: Annotated[
        str, typer.Option(help="admin, member, viewer, worker, or pool (a worker for all teams).")
    ] = "member",
    team: Annotated[str | None, typer.Option(help="The token's team. Default: your own.")] = None,
    days: Annotated[float | None, typer.Option(min=0, help="Days until it expires. Default: never.")] = None,
    local: Annotated[
        bool,
        typer.Option("--local", help="Write to the database (CDKA_DATABASE_URL) directly, to create the first token."),
    ] = False,
) -> None:
    """Create a token. Prints its secret, which is shown only once."""
    if local:
        session.require_extra("server")
        arguments = ["create-token", "--name", name, "--role", role, *(["--team", team] if team else [])]
        raise typer.Exit(subprocess.call([sys.executable, "-m", "service.app", *arguments]))
    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
    with session.connect() as client:
        print(client.create_token(name, role, team, expires_at).token)


@tokens.command("list")
def list_tokens(as_json: AsJson = False) -> None:
    """List tokens. Does not show secrets."""
    with session.connect() as client:
        columns = ["id", "name", "team", "role", "created_at", "expires_at", "revoked_at", "last_used_at"]
        session.show(client.tokens(), columns, as_json)


@tokens.command("rotate")
def rotate_token(
    token_id: Annotated[str, typer.Argument()],
    grace_minutes: Annotated[float, typer.Option(min=0, help="Minutes for which the old secret stays valid.")] = 60,
) -> None:
    """Create a new secret for a token and print it. The old secret expires after the grace period."""
    with session.connect() as client:
        print(client.rotate_token(token_id, grace_minutes * 60).token)


@tokens.command("revoke")
def revoke_token(token_id: Annotated[str, typer.Argument()]) -> None:
    """Revoke a token immediately."""
    with session.connect() as client:
        client.revoke_token(token_id)


@teams.command("list")
def list_teams(as_json: AsJson = False) -> None:
    """List teams with their quotas and current use."""
    columns = ["id", "name", "weight", "usage.running_trials", "max_running_trials", "usage.gpus", "max_gpus"]
    columns += ["usage.open_studies", "max_studies", "usage.storage_bytes", "max_storage_bytes"]
    with session.connect() as client:
        session.show(client.teams(), columns, as_json)


@teams.command("create")
def create_team(
    name: Annotated[str, typer.Argument()],
    weight: Weight = None,
    max_running_trials: Most = None,
    max_gpus: MostGpus = None,
    max_studies: Most = None,
    max_storage_bytes: Most = None,
) -> None:
    """Create a team. Prints its id."""
    given = _given(weight, max_running_trials, max_gpus, max_studies, max_storage_bytes)
    with session.connect() as client:
        print(client.create_team(name, **given).id)


@teams.command("update")
def update_team(
    team_id: Annotated[str, typer.Argument()],
    weight: Weight = None,
    max_running_trials: Most = None,
    max_gpus: MostGpus = None,
    max_studies: Most = None,
    max_storage_bytes: Most = None,
    lift: Annotated[list[str] | None, typer.Option(help=f"Lift a quota: {', '.join(QUOTAS)}.")] = None,
) -> None:
    """Change a team's share and quotas. Does not affect running trials."""
    if unknown := set(lift or ()) - set(QUOTAS):
        raise typer.BadParameter(f"no such quota: {', '.join(sorted(unknown))}; available: {', '.join(QUOTAS)}")
    given = _given(weight, max_running_trials, max_gpus, max_studies, max_storage_bytes)
    with session.connect() as client:
        session.print_json(client.update_team(team_id, **given, **dict.fromkeys(lift or ())))


def _given(weight: float | None, *quotas: float | None) -> dict[str, Any]:
    return {k: v for k, v in zip(("weight", *QUOTAS), (weight, *quotas), strict=True) if v is not None}


@webhooks.command("create")
def create_webhook(
    url: Annotated[str, typer.Argument()],
    event: Annotated[
        list[str] | None, typer.Option(help="Kind of event; repeat for more. Default: study.state.")
    ] = None,
) -> None:
    """Create a webhook. Prints it with its signing secret, which is shown only once."""
    with session.connect() as client:
        session.print_json(client.create_webhook(url, event))


@webhooks.command("list")
def list_webhooks(as_json: AsJson = False) -> None:
    """List the team's webhooks."""
    with session.connect() as client:
        session.show(client.webhooks(), ["id", "url", "events", "created_at"], as_json)


@webhooks.command("deliveries")
def list_deliveries(webhook_id: Annotated[str, typer.Argument()], as_json: AsJson = False) -> None:
    """List a webhook's deliveries and their responses, newest first."""
    columns = ["created_at", "kind", "study_id", "number", "state", "attempts", "status", "error"]
    with session.connect() as client:
        session.show(client.deliveries(webhook_id), columns, as_json)


@webhooks.command("delete")
def delete_webhook(webhook_id: Annotated[str, typer.Argument()]) -> None:
    """Delete a webhook."""
    with session.connect() as client:
        client.delete_webhook(webhook_id)


@app.command()
def workers(as_json: AsJson = False) -> None:
    """List runners and when each was last seen."""
    with session.connect() as client:
        session.show(client.workers(), ["name", "host", "cpus", "gpus", "busy", "warm", "last_seen_at"], as_json)


@app.command()
def hosts(
    release: Annotated[str | None, typer.Option(help="End the quarantine of this host.")] = None,
    as_json: AsJson = False,
) -> None:
    """List hosts with failures, and which are quarantined."""
    with session.connect() as client:
        found = client.hosts() if release is None else [client.release_host(release)]
        session.show(found, ["name", "failures", "quarantined_at", "reason"], as_json)


@app.command()
def demand(as_json: AsJson = False) -> None:
    """Show how many runners of each shape are needed."""
    with session.connect() as client:
        session.show(client.demand().items, ["cpus", "gpus", "slots"], as_json)


@app.command()
def audit(
    target: Annotated[str | None, typer.Option(help="Only changes of the resource with this id.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show who changed what, newest first."""
    with session.connect() as client:
        session.show(client.audit(target), ["at", "token", "role", "action", "target", "detail"], as_json)
