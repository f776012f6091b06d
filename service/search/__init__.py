"""Decides what to try next and what to stop. No I/O: everything comes in as arguments."""
