"""The cache of computed values."""

from __future__ import annotations

from service.context.recent import Recent


def test_the_latest_version_takes_the_place_of_the_one_before() -> None:
    recent, made = Recent(2), list[int]()

    def make(version: int) -> str:
        made.append(version)
        return f"value {version}"

    for version in (1, 1, 2, 2, 1):
        assert recent.latest("study", version, lambda version=version: make(version)) == f"value {version}"
    assert made == [1, 2, 1]
    assert len(recent._values) == 1
    for key in ("a", "b"):
        recent.latest(key, 1, lambda: make(9))
    assert len(recent._values) == 2, "the least recently used study is dropped"


def test_values_with_a_version_in_their_key_stay_beside_each_other() -> None:
    recent = Recent(2)
    assert recent.get(("chart", 1), lambda: "one") == "one"
    assert recent.get(("chart", 2), lambda: "two") == "two"
    assert recent.get(("chart", 1), lambda: "changed") == "one"
