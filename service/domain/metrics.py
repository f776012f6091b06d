"""The metrics of tasks by name, with the direction that is better."""

from __future__ import annotations

from .task_spec import TaskKind, TaskSpec
from .vocabulary import Direction

_UP, _DOWN = Direction.MAXIMIZE, Direction.MINIMIZE
_CLASSIFICATION = {"accuracy": _UP, "f1": _UP, "f1_positive": _UP, "matthews_correlation": _UP, "loss": _DOWN}
METRICS: dict[str, dict[str, Direction]] = {
    TaskKind.SEQUENCE_CLASSIFICATION: _CLASSIFICATION,
    TaskKind.SEQUENCE_REGRESSION: {"pearson": _UP, "spearman": _UP, "mse": _DOWN, "mae": _DOWN, "loss": _DOWN},
    TaskKind.CAUSAL_LM: {"loss": _DOWN, "perplexity": _DOWN, "exact_match": _UP},
    TaskKind.SEQ2SEQ_LM: {
        "exact_match": _UP,
        "accuracy": _UP,
        "f1": _UP,
        "f1_positive": _UP,
        "matthews_correlation": _UP,
        "loss": _DOWN,
    },
    TaskKind.IMAGE_CLASSIFICATION: _CLASSIFICATION,
}
# Metrics that are reported in points (hundredths).
IN_POINTS = frozenset({"accuracy", "f1", "f1_positive", "matthews_correlation", "exact_match", "pearson", "spearman"})
# Of those, the ones that may be negative.
CORRELATIONS = frozenset({"matthews_correlation", "pearson", "spearman"})
# Objectives that the server computes, besides the task's metrics.
PARAMETERS = "parameters"
COMPUTED: dict[str, Direction] = {PARAMETERS: Direction.MINIMIZE}


def metrics_of(task: TaskSpec) -> dict[str, Direction]:
    """The metrics of a task with their directions."""
    return dict(task.custom.metrics) if task.custom is not None else METRICS[task.kind]


def natural_direction(task: TaskSpec) -> Direction:
    """The direction of the task's metric; an unknown one counts as maximised and is rejected elsewhere."""
    return metrics_of(task).get(task.metric, Direction.MAXIMIZE)
