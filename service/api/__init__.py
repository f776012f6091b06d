"""Thin routes: each reads a request, calls one use case and writes its answer."""
