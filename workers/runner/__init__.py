"""A runner: leases trials, runs them, reports, and stores what they leave."""
