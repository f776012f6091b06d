"""Runners on a Ray cluster: the pool that keeps them, their actors, trials of several processes."""
