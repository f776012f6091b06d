"""Random sequences of user and runner actions keep the invariants of studies and trials."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from service.app import create_app, make_context
from service.db.checks import check
from service.domain.states import STUDY_TRANSITIONS, TRIAL_TRANSITIONS, StudyState, TrialState
from service.server.maintenance import maintain
from service.settings import Settings
from service.tenancy.tokens import ensure_team
from tests.conftest import Api, FakeClock

ENDED = {"completed", "pruned", "infeasible", "failed", "cancelled"}


class Lifecycles(RuleBasedStateMachine):
    """One team, one or two small studies, a few runners, and a clock."""

    database: Path
    data_root: Path

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="cdka-machine-"))
        shutil.copy(self.database, self.home / "cdka.db")
        self.clock = FakeClock()
        options = Settings(
            home=self.home,
            database_url=f"sqlite:///{self.home}/cdka.db",
            data_dirs=[self.data_root],
            lease_seconds=60,
            rate_limit=0,
        )
        ctx = make_context(options, self.clock, self.clock.elapsed)
        ensure_team(ctx, "default")
        self.clock.advance(61)
        self.api = Api(ctx, TestClient(create_app(ctx), base_url="http://localhost"))
        self.studies: list[str] = []
        self.leases: list[dict[str, Any]] = []
        self.study_states: dict[str, str] = {}
        self.trial_states: dict[str, str] = {}
        self.finished: dict[str, dict[str, Any]] = {}

    def teardown(self) -> None:
        self.api.ctx.db.engine.dispose()
        shutil.rmtree(self.home)

    # What users do.

    @precondition(lambda self: len(self.studies) < 2)
    @rule(
        trials=st.integers(1, 4),
        concurrency=st.integers(1, 3),
        retries=st.integers(0, 1),
        seeds=st.integers(0, 1),
        pruner=st.sampled_from(["none", "median", "asha"]),
    )
    def create(self, trials: int, concurrency: int, retries: int, seeds: int, pruner: str) -> None:
        search = {
            "trials": trials,
            "concurrency": concurrency,
            "retries": retries,
            "sampler": "random",
            "pruner": pruner,
            "pruner_options": {"median": {"n_startup_trials": 1}, "asha": {"reduction_factor": 2}}.get(pruner, {}),
            "finished": 1,
        }
        compare = {"seeds": seeds, "learning_rate": "shared", "baselines": []}
        self.studies.append(self.api.create(search=search, compare=compare, limits={"stall_minutes": 10})["id"])

    @precondition(lambda self: self.studies)
    @rule(
        which=st.integers(0, 1),
        verb=st.sampled_from(["pause", "pause?drain=false", "resume", "cancel"]),
    )
    def steer(self, which: int, verb: str) -> None:
        study = self.studies[which % len(self.studies)]
        assert self.api.call("POST", f"/studies/{study}/{verb}").status_code in (200, 409)

    @precondition(lambda self: self.studies)
    @rule(which=st.integers(0, 1), trials=st.integers(1, 6), concurrency=st.integers(1, 3))
    def change(self, which: int, trials: int, concurrency: int) -> None:
        study = self.studies[which % len(self.studies)]
        body = {"trials": trials, "concurrency": concurrency}
        assert self.api.call("PATCH", f"/studies/{study}", json=body).status_code in (200, 409, 422)

    @precondition(lambda self: self.studies)
    @rule(which=st.integers(0, 1), rate=st.sampled_from([0.001, 0.002, 0.003]))
    def enqueue(self, which: int, rate: float) -> None:
        study = self.studies[which % len(self.studies)]
        body = {"params": {"r1": 2, "r2": 4, "r": 4, "alpha": 8, "learning_rate": rate}}
        assert self.api.call("POST", f"/studies/{study}/trials", json=body).status_code in (201, 409)

    @precondition(lambda self: self.trial_states)
    @rule(which=st.integers(0, 50), verb=st.sampled_from(["stop", "retry"]))
    def steer_trial(self, which: int, verb: str) -> None:
        trials = sorted(self.trial_states)
        said = self.api.call("POST", f"/trials/{trials[which % len(trials)]}/{verb}")
        assert said.status_code in (200, 409)
        if said.status_code == 200 and verb == "retry":
            self.finished.pop(trials[which % len(trials)], None)

    # What runners do.

    @rule(runner=st.integers(0, 3))
    def lease(self, runner: int) -> None:
        lease = self.api.lease(f"runner-{runner}")
        if lease is not None:
            self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 9), step=st.integers(0, 5), score=st.floats(0, 1), saved=st.booleans())
    def report(self, which: int, step: int, score: float, saved: bool) -> None:
        lease = self.leases[which % len(self.leases)]
        checkpoint = f"artifacts/{step}" if saved else None
        said = self.api.report(lease, score, first_step=step, checkpoint=checkpoint)
        assert said.status_code in (200, 409)

    @precondition(lambda self: self.leases)
    @rule(
        which=st.integers(0, 9),
        how=st.sampled_from(["completed", "pruned", "cancelled", "released", "error", "diverged", "preempted"]),
        score=st.floats(0, 1),
    )
    def finish(self, which: int, how: str, score: float) -> None:
        lease = self.leases.pop(which % len(self.leases))
        failure = {"kind": how, "message": how} if how in ("error", "diverged", "preempted") else None
        state = {"error": "failed", "preempted": "failed", "diverged": "infeasible"}.get(how, how)
        said = self.api.finish(lease, state, score if how == "completed" else None, failure=failure)
        assert said.status_code in (200, 409)
        if said.status_code == 200:
            # A runner repeats its result if the answer was lost.
            again = self.api.finish(lease, state, score if how == "completed" else None, failure=failure)
            assert (again.status_code, again.json()) == (200, said.json())

    @rule(seconds=st.sampled_from([10, 61, 300, 900]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)
        maintain(self.api.ctx)

    @rule()
    def restart(self) -> None:
        ctx = make_context(self.api.ctx.settings, self.clock, self.clock.elapsed)
        self.api.ctx.db.engine.dispose()
        self.api = Api(ctx, TestClient(create_app(ctx), base_url="http://localhost"), self.api.secrets)

    # Invariants.

    @invariant()
    def records_agree(self) -> None:
        assert check(self.api.ctx.db) == []

    @invariant()
    def states_follow_the_tables_and_what_has_ended_stays(self) -> None:
        for study_id in self.studies:
            study = self.api.call("GET", f"/studies/{study_id}").json()
            was = self.study_states.get(study_id)
            assert was is None or self._reachable(STUDY_TRANSITIONS, StudyState, was, study["state"])
            self.study_states[study_id] = study["state"]
            trials = self.api.call("GET", f"/studies/{study_id}/trials", params={"limit": 200}).json()["items"]
            searched = [t for t in trials if t["phase"] == "search"]
            assert len(searched) <= study["search"]["planned"]
            assert [t["number"] for t in trials] == list(range(len(trials)))
            if study["state"] in ("completed", "failed"):
                assert all(t["state"] in ENDED or t["state"] == "running" for t in trials)
            for trial in trials:
                before = self.trial_states.get(trial["id"])
                assert before is None or self._reachable(TRIAL_TRANSITIONS, TrialState, before, trial["state"])
                self.trial_states[trial["id"]] = trial["state"]
                if trial["state"] in ("completed", "pruned", "infeasible"):
                    kept = self.finished.setdefault(trial["id"], trial)
                    assert {k: v for k, v in kept.items() if k != "candidate"} == {
                        k: v for k, v in trial.items() if k != "candidate"
                    }

    @staticmethod
    def _reachable(table: Any, kind: Any, start: str, end: str) -> bool:
        seen, todo = set(), [kind(start)]
        while todo:
            state = todo.pop()
            if state not in seen:
                seen.add(state)
                todo += table[state]
        return kind(end) in seen


@pytest.mark.parametrize(
    ("examples", "steps"), [(8, 25), pytest.param(60, 50, marks=pytest.mark.slow)], ids=["short", "long"]
)
@pytest.mark.timeout(3600)
def test_random_sequences_of_actions_keep_the_invariants(
    empty_database: Path, data_root: Path, examples: int, steps: int
) -> None:
    Lifecycles.database, Lifecycles.data_root = empty_database, data_root
    options = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Lifecycles, settings=options)
