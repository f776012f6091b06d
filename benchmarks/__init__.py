"""Benchmarks: contenders are measured in one run and compared as ratios. These are not tests."""
