"""Queues: events that workers of an account take, one worker at a time (PROTOCOL section 11)."""
