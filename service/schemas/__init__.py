"""The wire models: what requests and responses look like."""
