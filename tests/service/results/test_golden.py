"""Reports as they are known to be right, and as their schema says.

``CDKA_WRITE_GOLDEN=1 pytest tests/service/results/test_golden.py`` writes them anew; read the difference before it is
committed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from service.results.reports import schema
from tests.conftest import Api

GOLDEN = Path(__file__).parents[2] / "golden"
COMPARE = {"seeds": 3, "learning_rate": "shared", "predictors": ["guideline", "alignment"], "baselines": ["lora"]}
SEARCH = {"trials": 24, "concurrency": 1, "sampler": "random", "start": ["guideline"]}
GROUPS = {"attention": ["query", "key", "value"], "mlp": r".*\.layer\.\d+\.\w+\.dense"}


def grows_with_r2(trial: dict[str, Any]) -> float | None:
    wobble = 0.002 * ((trial["seed"] * 7 + trial["number"]) % 5 - 2)
    return float(0.6 + 0.02 * trial["params"].get("r2", trial["params"].get("mlp.r2", 1)) + wobble)


def fails_as_lora(trial: dict[str, Any]) -> float | None:
    return None if trial["method"] == "lora" else grows_with_r2(trial)


Case = tuple[dict[str, Any], Callable[[dict[str, Any]], float | None]]
CASES: dict[str, Case] = {
    "searching-won": ({"search": SEARCH, "compare": COMPARE}, grows_with_r2),
    "all-equal": ({"search": SEARCH, "compare": COMPARE}, lambda _: 0.5),
    "nothing-confirmed": ({"search": SEARCH, "compare": {"seeds": 0}}, grows_with_r2),
    "a-candidate-failed": ({"search": {**SEARCH, "retries": 0}, "compare": COMPARE}, fails_as_lora),
    "groups-of-layers": (
        {"search": {**SEARCH, "trials": 8}, "compare": COMPARE, "adapter": {"groups": GROUPS}},
        grows_with_r2,
    ),
}


def run(api: Api, case: Case) -> dict[str, str]:
    """The study's reports, without what differs from run to run."""
    changes, value = case
    study = api.create(**changes)
    while (lease := api.lease()) is not None:
        measured = {"seconds": 10.0, "device": "cpu", "steps": 60}
        found = value(lease["trial"])
        if found is None:
            failure = {"kind": "error", "message": "it broke"}
            api.finish(lease, "failed", value=None, failure=failure)
        else:
            api.finish(lease, value=found, resources=measured)
    reports = {}
    for form in ("md", "json"):
        text = api.call("GET", f"/studies/{study['id']}/report", params={"format": form}).text
        text = text.replace(study["id"], "STUDY")
        reports[form] = re.sub(r"((?:server|runner): \w+[\" :]+)\d+(\.\w+)+", r"\1VERSION", text)
    return reports


def assert_same(made: Any, known: Any, place: str) -> None:
    """The same but for the last digits, which differ between processors."""
    assert type(made) is type(known), place
    if isinstance(made, dict):
        assert list(made) == list(known), place
        for key, value in made.items():
            assert_same(value, known[key], f"{place}/{key}")
    elif isinstance(made, list):
        assert len(made) == len(known), place
        for k, value in enumerate(made):
            assert_same(value, known[k], f"{place}/{k}")
    elif isinstance(made, float):
        assert made == pytest.approx(known, rel=1e-6, abs=1e-9), place
    else:
        assert made == known, place


@pytest.mark.parametrize("name", CASES)
def test_a_report_is_as_it_was(api: Api, name: str) -> None:
    made = run(api, CASES[name])
    for form, text in made.items():
        file = GOLDEN / f"{name}.{'markdown' if form == 'md' else form}"
        if os.environ.get("CDKA_WRITE_GOLDEN"):
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        known = file.read_text()
        if form == "json":
            assert_same(json.loads(text), json.loads(known), file.name)
        else:
            assert text == known, f"{file.name} has changed; see this file's first lines"
    jsonschema.validate(json.loads(made["json"]), schema())


def test_the_schema_refuses_what_is_no_report(api: Api) -> None:
    found = json.loads((GOLDEN / "searching-won.json").read_text())
    for broken in ({**found, "budget": "many"}, {k: v for k, v in found.items() if k != "study"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema())
