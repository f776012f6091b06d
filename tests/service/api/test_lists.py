"""Lists are paged, filtered and sorted."""

from __future__ import annotations

from tests.conftest import Api, FakeClock


def test_lists_are_paged_filtered_and_sorted(api: Api, clock: FakeClock) -> None:
    ids = []
    for k in range(5):
        clock.advance(1)
        ids.append(api.create(name=f"study {k}")["id"])
    api.call("POST", f"/studies/{ids[1]}/cancel")
    page = api.call("GET", "/studies", params={"limit": 2}).json()
    assert [s["id"] for s in page["items"]] == ids[:2:-1]
    rest = api.call("GET", "/studies", params={"limit": 9, "cursor": page["next_cursor"]}).json()
    assert [s["id"] for s in rest["items"]] == ids[2::-1]
    assert rest["next_cursor"] is None
    oldest = api.call("GET", "/studies", params={"order": "oldest", "limit": 2}).json()
    assert [s["id"] for s in oldest["items"]] == ids[:2]
    assert [s["id"] for s in api.call("GET", "/studies", params={"state": "cancelled"}).json()["items"]] == [ids[1]]
    both = api.call("GET", "/studies", params={"state": ["cancelled", "queued"]}).json()["items"]
    assert len(both) == 5
    assert [s["id"] for s in api.call("GET", "/studies", params={"name": "UDY 3"}).json()["items"]] == [ids[3]]
    assert (
        api.call("GET", "/studies", params={"name": "%"}).json()["items"] == []
    )  # matched literally, not as a pattern
    for wrong in ({"limit": 0}, {"limit": 1000}, {"state": "lost"}, {"cursor": "'; --"}, {"order": "random"}):
        assert api.call("GET", "/studies", params=wrong).status_code == 422, wrong


def test_trials_are_filtered_and_sorted(api: Api) -> None:
    study = api.create(search={"trials": 3}, compare={"seeds": 1, "learning_rate": "shared"})
    api.run_all(lambda t: 0.5)
    path = f"/studies/{study['id']}/trials"
    newest = api.call("GET", path, params={"order": "-number", "limit": 2}).json()
    assert [t["number"] for t in newest["items"]] == sorted((t["number"] for t in newest["items"]), reverse=True)
    more = api.call("GET", path, params={"order": "-number", "cursor": newest["next_cursor"]}).json()["items"]
    assert more[0]["number"] == newest["items"][-1]["number"] - 1
    assert {t["phase"] for t in api.call("GET", path, params={"phase": "search"}).json()["items"]} == {"search"}
    assert api.call("GET", path, params={"state": "failed"}).json()["items"] == []
