"""Webhooks and their delivery log."""

from __future__ import annotations

from fastapi import APIRouter

from ..schemas.webhooks import DeliveryOut, WebhookCreated, WebhookOut, WebhookRequest
from ..schemas.wire import Page
from ..tenancy import webhooks
from .dependencies import ContextDep, Cursor, Id, IdempotencyKey, Limit, Reader, Writer, problems
from .idempotency import IdempotentRoute

router = APIRouter(tags=["operation"], route_class=IdempotentRoute)


@router.post("/webhooks", status_code=201, responses=problems())
def create_webhook(
    ctx: ContextDep, principal: Writer, body: WebhookRequest, idempotency_key: IdempotencyKey = None
) -> WebhookCreated:
    """Create a webhook for the team's events, signed (standardwebhooks.com). Only this response has its secret."""
    made = webhooks.create_webhook(ctx, principal, body.url, body.events)
    return WebhookCreated(**dict(WebhookOut.model_validate(made)), secret=made.secret)


@router.get("/webhooks", responses=problems())
def list_webhooks(ctx: ContextDep, principal: Reader) -> Page[WebhookOut]:
    """List the team's webhooks without their secrets."""
    return Page(items=[WebhookOut.model_validate(w) for w in webhooks.list_webhooks(ctx, principal.scope)])


@router.delete("/webhooks/{webhook_id}", status_code=204, responses=problems(404))
def delete_webhook(ctx: ContextDep, principal: Writer, webhook_id: Id) -> None:
    """Delete a webhook."""
    webhooks.delete_webhook(ctx, principal, webhook_id)


@router.get("/webhooks/{webhook_id}/deliveries", responses=problems(404))
def list_deliveries(
    ctx: ContextDep, principal: Reader, webhook_id: Id, limit: Limit = 50, cursor: Cursor = None
) -> Page[DeliveryOut]:
    """List sent and pending deliveries, newest first, with the receiver's last response."""
    found, next_cursor = webhooks.list_deliveries(ctx, webhook_id, principal.scope, limit, cursor)
    return Page(items=[DeliveryOut.model_validate(d) for d in found], next_cursor=next_cursor)
