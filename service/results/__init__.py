"""Read what studies have found: the comparison, exports, the Pareto front, events."""
