"""A runner: leases trials, runs them, reports, and stores their artifacts."""
