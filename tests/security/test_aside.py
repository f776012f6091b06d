"""Work whose cost depends on a caller's input runs in another process, with limits on time and memory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from service.context.aside import Processes
from service.errors import Fault, InvalidRequest, InvalidStudy, Overloaded
from service.paths import DataRoots
from service.studies import plans
from tests.conftest import Api, make_study

from . import work


@pytest.fixture
def aside() -> Iterator[Processes]:
    made = Processes([work.__name__], count=1, seconds=2.0, memory_bytes=1 << 30)
    yield made
    made.close()


def test_calls_run_in_another_process_that_is_reused(aside: Processes) -> None:
    assert aside(work.add, 1, 2) == 3
    first = aside(work.pid)
    assert first != os.getpid()
    assert aside(work.pid) == first


def test_errors_keep_their_faults(aside: Processes) -> None:
    with pytest.raises(InvalidStudy, match="1 fault") as raised:
        aside(work.fault)
    assert raised.value.faults == (Fault("#/model/path", "there is none"),)


@pytest.mark.parametrize("function", [work.sleep, work.spin])
def test_a_call_that_takes_too_long_ends_with_its_process(aside: Processes, function: Any) -> None:
    before = aside(work.pid)
    with pytest.raises(InvalidRequest, match="takes more than 2 s to count"):
        aside(function, 30)
    assert not Path(f"/proc/{before}").exists()
    assert aside(work.add, 1, 1) == 2


def test_a_call_that_allocates_too_much_is_rejected(aside: Processes) -> None:
    with pytest.raises(InvalidRequest, match="takes more than 1 GiB of memory"):
        aside(work.fill, 4 << 30)
    assert aside(work.fill, 1 << 20) == 1 << 20


def test_a_process_that_dies_is_replaced(aside: Processes) -> None:
    os.kill(aside(work.pid), 9)
    time.sleep(0.2)
    assert aside(work.add, 1, 1) == 2


def test_no_more_calls_than_processes_run_at_once(aside: Processes) -> None:
    import threading

    aside(work.add, 1, 1)

    def slow() -> None:
        with suppress(InvalidRequest):
            aside(work.sleep, 30)

    other = threading.Thread(target=slow)
    other.start()
    time.sleep(0.2)
    quick = Processes(count=1, seconds=0.2)
    quick._free = aside._free
    with pytest.raises(Overloaded):
        quick(work.add, 1, 1)
    other.join()


# --- studies


@pytest.fixture(scope="module")
def planner() -> Iterator[Processes]:
    made = Processes([plans.__name__], count=1, seconds=20.0, memory_bytes=2 << 30)
    yield made
    made.close()


def test_the_other_process_gives_the_same_plan(api: Api, planner: Processes, data_root: Path) -> None:
    roots = DataRoots([data_root], [data_root / "home"])
    here, there = plans.plan_study(make_study(), roots), planner(plans.plan_study, make_study(), roots)
    assert there == here
    api.ctx.aside = planner
    assert api.create()["budget"]["max_parameters"] == here.plan.max_parameters
    answer = api.call("POST", "/studies", json=make_study(budget={"lora_rank": 0}))
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "#/budget/lora_rank"


HUGE = {
    "layers without end": {"num_hidden_layers": 2_000_000},
    "layers of layers": {"num_hidden_layers": 50_000, "intermediate_size": 64},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", HUGE)
def test_a_config_with_too_many_layers_is_rejected_and_other_calls_are_served(
    api: Api, planner: Processes, data_root: Path, case: str
) -> None:
    api.ctx.aside = planner
    folder = data_root / f"huge-{len(case)}"
    folder.mkdir(exist_ok=True)
    config = json.loads((data_root / "tiny-bert" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **HUGE[case]}))
    started = time.monotonic()
    answer = api.call(
        "POST", "/predictions", "viewer", json={"model": {"path": folder.name}, "budget": {"lora_rank": 4}}
    )
    assert answer.status_code == 422, answer.text
    assert "config or the budget asks for too many" in answer.json()["detail"]
    assert time.monotonic() - started < 60
    assert api.create()["state"] == "queued"


@pytest.mark.parametrize(
    "budget", [{"max_parameters": 10**12}, {"max_parameters": 2**63 - 1}, {"max_parameters": 10**300}]
)
def test_a_budget_beyond_the_base_model_is_rejected_at_once(api: Api, budget: dict[str, Any]) -> None:
    started = time.monotonic()
    answer = api.call("POST", "/studies", json=make_study(budget=budget))
    assert answer.status_code == 422
    assert time.monotonic() - started < 5
