"""Webhooks: events posted to the accounts' own endpoints (PROTOCOL section 9)."""
