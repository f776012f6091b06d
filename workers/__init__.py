"""Runs trials: a pool of Ray actors that lease, train, report and repeat."""
