"""Hand trials out to runners and take their reports and results."""
