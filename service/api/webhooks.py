"""Webhooks and their delivery log."""

from __future__ import annotations

from fastapi import APIRouter

from ..schemas.common import Page
from ..schemas.webhooks import DeliveryOut, WebhookCreated, WebhookOut, WebhookRequest
from ..tenancy import webhooks
from .dependencies import ContextDep, Cursor, Id, IdempotencyKey, Limit, Reader, Writer, problems
from .idempotency import IdempotentRoute

router = APIRouter(tags=["operation"], route_class=IdempotentRoute)


@router.post("/webhooks", status_code=201, responses=problems())
def create_webhook(
    ctx: ContextDep, principal: Writer, body: WebhookRequest, idempotency_key: IdempotencyKey = None
) -> WebhookCreated:
    """Have the team's events sent to an address, signed (standardwebhooks.com). The secret is shown this once."""
    made = webhooks.create_webhook(ctx, principal, body.url, body.events)
    return WebhookCreated(**dict(WebhookOut.model_validate(made)), secret=made.secret)


@router.get("/webhooks", responses=problems())
def list_webhooks(ctx: ContextDep, principal: Reader) -> Page[WebhookOut]:
    """The team's webhooks, without their secrets."""
    return Page(items=[WebhookOut.model_validate(w) for w in webhooks.list_webhooks(ctx, principal.scope)])


@router.delete("/webhooks/{webhook_id}", status_code=204, responses=problems(404))
def delete_webhook(ctx: ContextDep, principal: Writer, webhook_id: Id) -> None:
    """Send a webhook nothing more."""
    webhooks.delete_webhook(ctx, principal, webhook_id)


@router.get("/webhooks/{webhook_id}/deliveries", responses=problems(404))
def list_deliveries(
    ctx: ContextDep, principal: Reader, webhook_id: Id, limit: Limit = 50, cursor: Cursor = None
) -> Page[DeliveryOut]:
    """What was sent, or is still to be: newest first, with the receiver's last answer."""
    found, next_cursor = webhooks.list_deliveries(ctx, webhook_id, principal.scope, limit, cursor)
    return Page(items=[DeliveryOut.model_validate(d) for d in found], next_cursor=next_cursor)
