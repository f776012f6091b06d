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
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
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
from ..errors import Fault, InvalidRequest
from .sealing import WrongKey, is_sealed, sealer

_log = logging.getLogger(__name__)
SECRET_PREFIX = "whsec_"  # noqa: S105  # a prefix is no secret
# Seconds until the next attempt, after each failure; after the last one the delivery is abandoned.
BACK_OFF = (5, 30, 120, 600, 3600, 6 * 3600, 24 * 3600)
CLAIMED = timedelta(minutes=2)
TIMEOUT_SECONDS = 10.0
# For a whole delivery.
TOTAL_SECONDS = 20.0
BATCH = 50
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
    target = _parsed(url)
    try:
        addresses = list(resolve(target.host, target.port or (443 if target.scheme == "https" else 80)))
    except (OSError, UnicodeError) as error:
        raise _fault(f"{target.host} has no address: {error}") from error
    inside = [address for address in addresses if not is_public(address)]
    if not addresses or (inside and not allow_private):
        raise _fault(
            f"{target.host} is at {', '.join(inside) or 'no address'}, which is not on the public internet; "
            "an operator can allow that with CDKA_WEBHOOK_PRIVATE=on"
        )
    return addresses[0]


@dataclass(frozen=True, slots=True)
class _Target:
    """The parts of a webhook's address; ``host`` is ASCII."""

    scheme: str
    host: str
    port: int | None
    path: str


def _parsed(url: str) -> _Target:
    """The parts of an address.

    Raises:
        InvalidRequest: it is no address of a web server.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
        host = parts.hostname or ""
        host = host if host.isascii() else host.encode("idna").decode()
        path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        f"{host}{path}".encode("ascii")
    except ValueError as error:
        raise _fault(f"it is no address of a web server: {error}") from error
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.password or port == 0:
        raise _fault("give an address as https://host/path, without user and password")
    return _Target(parts.scheme, host, port, path)


# IPv6 networks that stand for IPv4 addresses, and where in an address those are.
_EMBEDDED = (
    (ipaddress.ip_network("64:ff9b::/96"), 96),  # NAT64
    (ipaddress.ip_network("64:ff9b:1::/48"), 96),  # NAT64 of a network of one's own
    (ipaddress.ip_network("2002::/16"), 16),  # 6to4
    (ipaddress.ip_network("::/96"), 96),  # compatible with IPv4
)


def is_public(address: str) -> bool:
    """Whether an address is on the public internet, whatever it is written as."""
    found = ipaddress.ip_address(address.split("%")[0])
    if found.version == 6:
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if found.is_site_local:
            return False
        for network, begin in _EMBEDDED:
            if found in network:
                return is_public(str(ipaddress.IPv4Address(int(found) >> (96 - begin) & 0xFFFFFFFF)))
    return found.is_global and not found.is_multicast


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
    raw, webhook_id = secrets.token_bytes(32), new_id(now)
    webhook = Webhook(webhook_id, caller.team_id, url, list(events), _written(raw), True, now)
    stored = replace(webhook, secret=sealer(ctx.settings).seal(raw, webhook_id))
    with ctx.db.write() as session:
        Webhooks(session).add(stored)
        Audit(session).record(
            caller, now, "webhook.create", webhook.id, host=urlsplit(url).hostname, events=list(events)
        )
    return webhook


def _written(secret: bytes) -> str:
    return SECRET_PREFIX + base64.b64encode(secret).decode()


def _secret(ctx: Context, webhook: Webhook) -> str:
    if not is_sealed(webhook.secret):
        return webhook.secret
    return _written(sealer(ctx.settings).open(webhook.secret, webhook.id))


@retried
def seal_secrets(ctx: Context) -> int:
    """Seal the secrets that an earlier version stored as they are; returns how many there were.

    Raises:
        WrongKey: there is no usable key.
    """
    if all(is_sealed(webhook.secret) for webhook in list_webhooks(ctx, None)):
        return 0
    with ctx.db.write() as session:
        webhooks = Webhooks(session)
        plain = [webhook for webhook in webhooks.list(None) if not is_sealed(webhook.secret)]
        for webhook in plain:
            raw = base64.b64decode(webhook.secret.removeprefix(SECRET_PREFIX))
            webhooks.change_secret(webhook.id, sealer(ctx.settings).seal(raw, webhook.id))
    return len(plain)


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
    """Send the deliveries that are due, one after the other; returns how many were tried."""
    due = claim(ctx)
    return sum(deliver(ctx, http, webhook, delivery) for webhook, delivery in due)


def deliver(ctx: Context, http: httpx.Client, webhook: Webhook, delivery: Delivery) -> bool:
    """Send one delivery and record the outcome, whatever it is; returns whether it was tried."""
    try:
        status, error = _send(ctx, http, webhook, delivery)
    except Exception as raised:  # every failure counts as an attempt, so that none comes back for ever
        status, error = None, f"{type(raised).__name__}: {raised}"
    _settle(ctx, delivery, status, error)
    return True


@retried
def claim(ctx: Context, busy: Collection[str] = ()) -> list[tuple[Webhook, Delivery]]:
    """Claim due deliveries, none of teams that are ``busy``, with their webhooks."""
    now = ctx.clock()
    with ctx.db.write() as session:
        webhooks = Webhooks(session)
        found = webhooks.claim_due(now, now + CLAIMED, BATCH, busy)
        known = {webhook.id: webhook for webhook in webhooks.list(None)} if found else {}
    return [(known[delivery.webhook_id], delivery) for delivery in found if delivery.webhook_id in known]


def _send(ctx: Context, http: httpx.Client, webhook: Webhook, delivery: Delivery) -> tuple[int | None, str | None]:
    body = json.dumps(delivery.body, separators=(",", ":"))
    now = ctx.clock()
    held: list[Any] = []

    def note(event: str, info: dict[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            held.append(info["return_value"])

    # A receiver that sends a byte now and then would never exceed a timeout of its own.
    cut = threading.Timer(TOTAL_SECONDS, lambda: _cut(held))
    cut.daemon = True
    try:
        target = _parsed(webhook.url)
        address = permitted_address(webhook.url, ctx.settings.webhook_private)
        port = f":{target.port}" if target.port else ""
        place = f"[{address}]" if ":" in address else address
        cut.start()
        # The answer's body is not read: it may be of any size.
        with http.stream(
            "POST",
            f"{target.scheme}://{place}{port}{target.path}",
            content=body,
            headers={
                "Host": f"{target.host}{port}",
                "Content-Type": "application/json",
                "User-Agent": "cdka-webhooks/1",
                "Connection": "close",
                "webhook-id": delivery.id,
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": standardwebhooks.Webhook(_secret(ctx, webhook)).sign(delivery.id, now, body),
            },
            extensions={"sni_hostname": target.host, "trace": note},
            timeout=TIMEOUT_SECONDS,
            follow_redirects=False,
        ) as answer:
            return answer.status_code, None if answer.is_success else f"answered {answer.status_code}"
    except InvalidRequest as error:
        return None, error.faults[0].detail
    except WrongKey as error:
        return None, error.detail
    except httpx.HTTPError as error:
        return None, f"{type(error).__name__}: {error}"
    finally:
        cut.cancel()


def _cut(streams: Sequence[Any]) -> None:
    """End a connection that is in use by another thread."""
    for stream in streams:
        with suppress(OSError):
            stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


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
