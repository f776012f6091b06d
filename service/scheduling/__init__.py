"""The use cases: what the service does with studies, trials and leases. Each is one or two transactions."""
