"""Waiting for one event: what it must be like, what is read out of it, and the wait itself (PROTOCOL section 11)."""
