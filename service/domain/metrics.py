"""The metrics that tasks report, by name, and which way is better."""

from __future__ import annotations

from .study_spec import Direction

METRICS: dict[str, dict[str, Direction]] = {
    "sequence_classification": {
        "accuracy": Direction.MAXIMIZE,
        "f1": Direction.MAXIMIZE,
        "matthews_correlation": Direction.MAXIMIZE,
        "loss": Direction.MINIMIZE,
    },
}
# Metrics in [0, 1] are read in points (hundredths).
IN_POINTS = frozenset({"accuracy", "f1", "matthews_correlation"})
# What the server itself knows of a trial, as an objective beside the task's metrics.
PARAMETERS = "parameters"
COMPUTED: dict[str, Direction] = {PARAMETERS: Direction.MINIMIZE}
