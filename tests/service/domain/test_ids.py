"""Identifiers are UUIDs of version 7 and sort in the order in which they were made."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID

from service.domain.ids import new_id

NOW = datetime(2026, 11, 27, 12, 0, 0, 123_000, tzinfo=UTC)


def test_an_identifier_is_a_uuid_of_version_7_that_starts_with_its_time() -> None:
    for k in range(1000):
        uuid = UUID(new_id(NOW + timedelta(milliseconds=k)))
        assert uuid.version == 7
        assert uuid.variant == "specified in RFC 4122"
        assert uuid.int >> 80 == int(NOW.timestamp() * 1000) + k


def test_identifiers_of_one_millisecond_sort_in_the_order_in_which_they_were_made() -> None:
    made = [new_id(NOW) for _ in range(10_000)]
    assert made == sorted(set(made))


def test_a_clock_that_goes_back_repeats_no_identifier() -> None:
    earlier = NOW - timedelta(seconds=1)
    made = [new_id(at) for _ in range(1000) for at in (NOW, earlier)]
    assert len(set(made)) == len(made)


def test_threads_that_make_identifiers_at_once_never_make_the_same_one() -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: new_id(NOW), range(20_000)))
    assert len(set(made)) == len(made)
