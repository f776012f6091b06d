"""Metrics for Prometheus. Request and sampler times are this process's; the rest is read from the database."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ..context.context import Context
from ..db.leases import Leases
from ..db.studies import Studies
from ..db.teams import Teams
from ..db.trial_counts import Counts
from ..domain.states import StudyPhase, TrialPhase, TrialState

_TIMES = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "cdka_http_requests", "Requests answered", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "cdka_http_request_seconds",
            "Time to answer a request",
            ["method", "route"],
            buckets=_TIMES,
            registry=self.registry,
        )
        self._sampler = Histogram(
            "cdka_sampler_seconds",
            "Time to propose a configuration",
            ["sampler"],
            buckets=_TIMES,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def observe_sampling(self, sampler: str, seconds: float) -> None:
        """Count a proposal."""
        self._sampler.labels(sampler).observe(seconds)

    def watch(self, ctx: Context) -> None:
        """Read queue, trials and leases from the database at every scrape."""
        self.registry.register(_Records(ctx))

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)


class _Records(Collector):
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def describe(self) -> Iterable[Any]:
        return []

    def collect(self) -> Iterable[GaugeMetricFamily]:
        now = self._ctx.clock()
        with self._ctx.db.read() as session:
            trials = Counts(session).states()
            loads = Studies(session).loads(None)
            leases = Leases(session).held()
            teams = Teams(session).list()
            usage = Teams(session).usage([t.id for t in teams])
        states = GaugeMetricFamily("cdka_trials", "Trials by state and kind of failure", labels=["state", "failure"])
        for (state, failure), count in trials.items():
            states.add_metric([state, failure], count)
        yield states
        queued = to_ask = 0
        for load in loads:
            mine = load.counts
            queued += sum(n for (_, state), n in mine.items() if state is TrialState.QUEUED)
            if load.phase is StudyPhase.SEARCH:
                there = sum(n for (phase, _), n in mine.items() if phase is TrialPhase.SEARCH)
                to_ask += max(0, load.planned - there)
        depth = GaugeMetricFamily(
            "cdka_queue_depth", "Trials that wait: queued, or yet to be asked for", labels=["kind"]
        )
        depth.add_metric(["queued"], queued)
        depth.add_metric(["to_ask"], to_ask)
        yield depth
        held = [lease for lease in leases if lease.expires_at >= now]
        yield GaugeMetricFamily("cdka_leases_held", "Leases that are held", value=len(held))
        oldest = max((now - lease.acquired_at).total_seconds() for lease in held) if held else 0.0
        yield GaugeMetricFamily("cdka_lease_age_seconds", "Age of the oldest lease that is held", value=oldest)
        # The longest silence of a runner; close to the lease time, the runner or the network has a problem.
        silent = (
            max((self._ctx.lease_time - (lease.expires_at - now)).total_seconds() for lease in held) if held else 0.0
        )
        yield GaugeMetricFamily("cdka_lease_silence_seconds", "Longest time without a report", value=max(0.0, silent))
        running = GaugeMetricFamily("cdka_team_running_trials", "Trials that a team runs", labels=["team"])
        gpus = GaugeMetricFamily("cdka_team_gpus", "GPUs that a team holds", labels=["team"])
        for team in teams:
            running.add_metric([team.name], usage[team.id].running_trials)
            gpus.add_metric([team.name], usage[team.id].gpus)
        yield running
        yield gpus
