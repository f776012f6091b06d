"""Schemathesis over the whole OpenAPI schema, authenticated: no 5xx, no undocumented status; and fuzzed study files."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import CHECKS
from schemathesis.config import SchemathesisConfig

from service.api.limits import RateLimits
from service.errors import InvalidStudy
from service.schemas.study_file import StudyFile
from service.studies.plans import plan_study
from tests.conftest import Api, make_study

CASES = 4_000
FEWEST = 2_000
# The server may reject requests that the schema allows, such as a model that does not exist.
EXCLUDED_CHECKS = {"positive_data_acceptance"}
# These requests were generated as invalid because they lack a token, but this test adds one.
PUT_BACK = "violates `required` (was Authorization)"
# The event stream of an open study does not end; tests/service/results/test_events.py reads it.
ENDLESS = "/api/v1/studies/{study_id}/events"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_generated_requests_get_only_documented_answers(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.tenancy import webhooks

    monkeypatch.setattr(webhooks, "permitted_address", lambda url, private, resolve=None: "203.0.113.9")
    api.http.app.state.limits = RateLimits(0, refusals_a_minute=1_000_000, all_refusals_a_minute=1_000_000)  # type: ignore[attr-defined]
    ids = _things(api)
    schema = schemathesis.openapi.from_asgi(
        "/openapi.json",
        api.http.app,
        config=SchemathesisConfig.from_dict({"generation": {"deterministic": True}}),
    )
    checks = [check for check in CHECKS.get_all() if check.__name__ not in EXCLUDED_CHECKS]
    operations = [found.ok() for found in schema.get_all_operations() if found.ok().path != ENDLESS]
    each = math.ceil(CASES / len(operations) / 2)
    found = _Found()
    for operation in operations:
        for mode in schemathesis.GenerationMode:
            _fuzz(operation, mode, each, api, ids, checks, found)
    counted, statuses, faults = found.counted, found.statuses, found.faults
    print(f"{sum(counted.values())} cases over {len(counted)} operations: {dict(sorted(statuses.items()))}")
    assert not faults, f"{len(faults)} faults, such as:\n" + "\n".join(faults[:5])
    assert sum(counted.values()) >= FEWEST
    assert set(counted) == {operation.label for operation in operations}
    assert not [status for status in statuses if status >= 500]
    # Some calls succeeded, so not every request stopped at validation.
    assert sum(n for status, n in statuses.items() if status < 300) > CASES / 10


@dataclass
class _Found:
    """Results of all cases."""

    counted: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def _fuzz(operation: Any, mode: Any, count: int, api: Api, ids: dict[str, str], checks: Any, found: _Found) -> None:
    """Send generated requests of one operation. Sends none if the mode has no requests, as without invalid input."""

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def run(case: Any) -> None:
        for name in list(case.path_parameters or {}):
            # Half of the valid calls name an existing resource.
            if mode is schemathesis.GenerationMode.POSITIVE and name in ids and found.counted[operation.label] % 2:
                case.path_parameters[name] = ids[name]
        headers = {"Authorization": f"Bearer {api.token('admin')}"}
        found.counted[operation.label] += 1
        response = case.call(headers=headers)
        found.statuses[response.status_code] += 1
        try:
            case.validate_response(response, checks=checks, headers=headers)
        except BaseExceptionGroup as error:
            if PUT_BACK in str(error):
                return
            found.faults.append(f"{operation.label}: {error}: {error.exceptions[0]}")

    with contextlib.suppress(Unsatisfiable):
        run()


def _things(api: Api) -> dict[str, str]:
    study = api.create(search={"trials": 5_000, "concurrency": 5_000, "sampler": "random"})
    lease = api.lease()
    assert lease is not None
    team = api.call("POST", "/teams", "admin", json={"name": "spare"}).json()
    return {
        "study_id": study["id"],
        "trial_id": lease["trial"]["id"],
        "lease_id": lease["id"],
        "team_id": team["id"],
        "kind": "history",
    }


# Study files.

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


@given(text=st.text(max_size=300))
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_any_text_as_a_study_file_raises_only_study_errors(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        StudyFile(file).check()
    except InvalidStudy:
        return


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key in value:
            found += _places(value[key], (*path, key))
    return found


WHOLE = make_study(
    objectives=[{"metric": "accuracy", "direction": "maximize"}],
    limits={"hours": 1},
    resources={"cpus": 1},
    adapter={"target_modules": "all-linear"},
)


@pytest.mark.parametrize("examples", [80, pytest.param(300, marks=pytest.mark.slow)])
def test_any_value_at_any_place_is_valid_or_a_fault_with_a_line(data_root: Path, examples: int) -> None:
    """Every fault has a pointer, and the study file knows its line."""

    @given(place=st.sampled_from(_places(WHOLE)), value=VALUES)
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    def run(place: Any, value: Any) -> None:
        _check_value(data_root, place, value)

    run()


def _check_value(data_root: Path, place: Any, value: Any) -> None:
    study: Any = yaml.safe_load(yaml.safe_dump(WHOLE))
    inner = study
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    file = data_root / "fuzzed-study.yaml"
    file.write_text(yaml.safe_dump(study, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    try:
        written = StudyFile(file)
    except InvalidStudy:
        return
    try:
        plan_study(written.content, [data_root])
        return
    except InvalidStudy as error:
        faults = error.faults
    assert faults
    for fault in faults:
        assert fault.pointer.startswith("#")
        assert written.line(fault.pointer) is not None or fault.pointer == "#"
