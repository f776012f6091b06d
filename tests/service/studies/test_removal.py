"""Studies are deleted and purged."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.context.context import Context
from service.server.maintenance import maintain
from service.studies.removal import purge_deleted
from tests.conftest import Api, FakeClock

from ..helpers import lease_of, study_of

pytestmark = pytest.mark.usefixtures("in_order")


def test_deletion_hides_a_study_now_and_purges_artifacts_later(api: Api, ctx: Context, clock: FakeClock) -> None:
    study = api.create(search={"trials": 2})
    clock.advance(1)
    other = api.create(name="other")
    lease = lease_of(api)
    assert lease["trial"]["study_id"] == study["id"]
    folder = Path(ctx.settings.artifacts_url) / "studies" / study["id"]
    folder.mkdir(parents=True)
    (folder / "adapter.bin").write_bytes(b"x" * 10)
    assert api.call("DELETE", f"/studies/{study['id']}").status_code == 204
    assert api.call("GET", f"/studies/{study['id']}").status_code == 404
    assert api.call("GET", f"/trials/{lease['trial']['id']}").status_code == 404
    assert [s["id"] for s in api.call("GET", "/studies").json()["items"]] == [other["id"]]
    assert api.report(lease, 0.5).status_code == 404  # its runner learns that the trial no longer exists
    assert api.call("DELETE", f"/studies/{study['id']}").status_code == 404
    assert purge_deleted(ctx) == []
    assert folder.exists()
    clock.advance(ctx.settings.purge_hours * 3600 + 1)
    maintain(ctx)
    assert purge_deleted(ctx) == [study["id"]]
    assert not folder.exists()
    assert purge_deleted(ctx) == []


def test_a_deleted_studys_trial_does_not_block_limits_of_others(api: Api, ctx: Context, clock: FakeClock) -> None:
    """Its lease is still held when another study's limits are checked."""
    gone = api.create(search={"trials": 2})
    assert lease_of(api, "first")["trial"]["study_id"] == gone["id"]
    limited = api.create(search={"trials": 2}, limits={"hours": 0.01})
    assert lease_of(api, "second")["trial"]["study_id"] == limited["id"]
    assert api.call("DELETE", f"/studies/{gone['id']}").status_code == 204
    clock.advance(37)
    maintain(ctx)
    assert study_of(api, limited)["state"] == "failed"


def test_a_study_can_be_purged_at_once(api: Api, ctx: Context) -> None:
    study = api.create()
    folder = Path(ctx.settings.artifacts_url) / "studies" / study["id"]
    folder.mkdir(parents=True)
    assert api.call("DELETE", f"/studies/{study['id']}", params={"purge": True}).status_code == 204
    assert not folder.exists()
