"""Webhooks on the wire. A signing secret is sent once, when its webhook is made."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..domain.states import EventKind
from ..domain.study_spec import Text
from .wire import Sent, Time, Wire

DEFAULT_EVENTS = [EventKind.STUDY_STATE]


class WebhookRequest(Sent):
    url: Text = Field(examples=["https://hooks.example.org/cdka"])
    events: Annotated[list[EventKind], Field(min_length=1, max_length=20)] = Field(
        default=DEFAULT_EVENTS, description="Kinds of events; trial.reported is for the event stream alone."
    )


class WebhookOut(Wire):
    id: str
    team_id: str
    url: str
    events: list[EventKind]
    active: bool
    created_at: Time


class WebhookCreated(WebhookOut):
    secret: str


class DeliveryOut(Wire):
    """One event on its way; ``status`` is the receiver's last answer."""

    id: str
    study_id: str
    number: int
    kind: EventKind
    state: str
    attempts: int
    next_at: Time | None
    status: int | None
    error: str | None
    created_at: Time
    delivered_at: Time | None
