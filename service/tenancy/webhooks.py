"""Store webhooks and send their deliveries.

A delivery is a POST of the event as JSON with these headers (the scheme of standardwebhooks.com):
``webhook-id`` the delivery's id, the same at every attempt; ``webhook-timestamp`` seconds since 1970;
``webhook-signature`` ``v1,`` and the base64 HMAC-SHA256 of ``id.timestamp.body`` under the webhook's secret.
Receivers verify it with any of the scheme's libraries.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import httpx
import standardwebhooks

from ..context.context import Context
from ..db.audit import Audit
from ..db.retries import retried
from ..db.webhooks import DELIVERED, GIVEN_UP, PENDING, Webhooks
from ..domain.ids import new_id
from ..domain.operation import Delivery, Webhook
from ..domain.records import Principal
from ..errors import Fault, InvalidRequest, NotFound

_log = logging.getLogger(__name__)
SECRET_PREFIX = "whsec_"  # noqa: S105  # a prefix is no secret
# Seconds until the next attempt, after each failure; after the last one the delivery is abandoned.
BACK_OFF = (5, 30, 120, 600, 3600, 6 * 3600, 24 * 3600)
CLAIMED = timedelta(minutes=2)
TIMEOUT_SECONDS = 10.0
BATCH = 20
LONGEST_ERROR = 300

Resolve = Callable[[str, int], Sequence[str]]


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host.

    Raises:
        OSError: it has none.
    """
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def permitted_address(url: str, allow_private: bool, resolve: Resolve = resolve) -> str:
    """The address that a webhook's host has now, if it may be called.

    Checks all addresses of the host. The caller connects to the returned one, so that the name cannot resolve to
    another address between check and call.

    Raises:
        InvalidRequest: not a URL to call, no such host, or an address inside (loopback, private, link-local, ...).
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise _fault("give an address as https://host/path, without user and password")
    try:
        addresses = list(resolve(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)))
    except (OSError, UnicodeError) as error:
        raise _fault(f"{parts.hostname} has no address: {error}") from error
    inside = [a for a in addresses if not ipaddress.ip_address(a.split("%")[0]).is_global]
    if not addresses or (inside and not allow_private):
        raise _fault(
            f"{parts.hostname} is at {', '.join(inside) or 'no address'}, which is not on the public internet; "
            "an operator can allow that with CDKA_WEBHOOK_PRIVATE=on"
        )
    return addresses[0]


def _fault(detail: str) -> InvalidRequest:
    return InvalidRequest("the webhook cannot be used", [Fault("#/url", detail)])


def create_webhook(ctx: Context, caller: Principal, url: str, events: Sequence[str]) -> Webhook:
    """Create a webhook that sends a team's events to ``url``. The secret is shown only once.

    Raises:
        InvalidRequest: the address may not be called.
    """
    permitted_address(url, ctx.settings.webhook_private)
    return _store(ctx, caller, url, events)


@retried
def _store(ctx: Context, caller: Principal, url: str, events: Sequence[str]) -> Webhook:
    now = ctx.clock()
    secret = SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()
    webhook = Webhook(new_id(now), caller.team_id, url, list(events), secret, True, now)
    with ctx.db.write() as session:
        Webhooks(session).add(webhook)
        Audit(session).record(
            caller, now, "webhook.create", webhook.id, host=urlsplit(url).hostname, events=list(events)
        )
    return webhook


def list_webhooks(ctx: Context, team_id: str | None) -> list[Webhook]:
    """A team's webhooks."""
    with ctx.db.read() as session:
        return Webhooks(session).list(team_id)


@retried
def delete_webhook(ctx: Context, caller: Principal, webhook_id: str) -> None:
    """Delete a webhook.

    Raises:
        NotFound: there is none in this team.
    """
    with ctx.db.write() as session:
        Webhooks(session).get(webhook_id, caller.scope)
        Webhooks(session).remove(webhook_id)
        Audit(session).record(caller, ctx.clock(), "webhook.delete", webhook_id)


def list_deliveries(
    ctx: Context, webhook_id: str, team_id: str | None, limit: int, before: str | None
) -> tuple[list[Delivery], str | None]:
    """A page of a webhook's delivery log, newest first, and the cursor of the next page.

    Raises:
        NotFound: there is no such webhook in this team.
    """
    with ctx.db.read() as session:
        Webhooks(session).get(webhook_id, team_id)
        found = Webhooks(session).deliveries(webhook_id, limit + 1, before)
    page = found[:limit]
    return page, page[-1].id if len(found) > limit else None


def deliver_due(ctx: Context, http: httpx.Client) -> int:
    """Send the deliveries that are due; returns how many were tried."""
    due = _claim(ctx)
    for delivery in due:
        try:
            with ctx.db.read() as session:
                webhook = Webhooks(session).get(delivery.webhook_id, None)
        except NotFound:
            continue
        status, error = _send(ctx, http, webhook, delivery)
        _settle(ctx, delivery, status, error)
    return len(due)


@retried
def _claim(ctx: Context) -> list[Delivery]:
    now = ctx.clock()
    with ctx.db.write() as session:
        return Webhooks(session).claim_due(now, now + CLAIMED, BATCH)


def _send(ctx: Context, http: httpx.Client, webhook: Webhook, delivery: Delivery) -> tuple[int | None, str | None]:
    body = json.dumps(delivery.body, separators=(",", ":"))
    now = ctx.clock()
    parts = urlsplit(webhook.url)
    try:
        address = permitted_address(webhook.url, ctx.settings.webhook_private)
        port = f":{parts.port}" if parts.port else ""
        target = f"[{address}]" if ":" in address else address
        path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        answer = http.post(
            f"{parts.scheme}://{target}{port}{path}",
            content=body,
            headers={
                "Host": f"{parts.hostname}{port}",
                "Content-Type": "application/json",
                "User-Agent": "cdka-webhooks/1",
                "webhook-id": delivery.id,
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": standardwebhooks.Webhook(webhook.secret).sign(delivery.id, now, body),
            },
            extensions={"sni_hostname": parts.hostname},
            timeout=TIMEOUT_SECONDS,
            follow_redirects=False,
        )
    except InvalidRequest as error:
        return None, error.faults[0].detail
    except httpx.HTTPError as error:
        return None, f"{type(error).__name__}: {error}"
    return answer.status_code, None if answer.is_success else f"answered {answer.status_code}"


@retried
def _settle(ctx: Context, delivery: Delivery, status: int | None, error: str | None) -> None:
    now = ctx.clock()
    attempts = delivery.attempts + 1
    state, next_at = _next(attempts, now) if error is not None else (DELIVERED, None)
    with ctx.db.write() as session:
        Webhooks(session).settle(
            delivery.id,
            state=state,
            attempts=attempts,
            next_at=next_at,
            status=status,
            error=None if error is None else error[:LONGEST_ERROR],
            delivered_at=now if error is None else None,
        )


def _next(attempts: int, now: datetime) -> tuple[str, datetime | None]:
    if attempts > len(BACK_OFF):
        return GIVEN_UP, None
    return PENDING, now + timedelta(seconds=BACK_OFF[attempts - 1])
