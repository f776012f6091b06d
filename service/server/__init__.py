"""Background work and logs of a server."""
