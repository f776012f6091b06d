"""Who may do what: tokens, teams, quotas, webhooks."""
