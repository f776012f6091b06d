"""Measurements as ratios side by side in one run; figures, not tests."""
