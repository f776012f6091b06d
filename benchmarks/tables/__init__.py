"""Recorded learning curves that policies of search replay."""
