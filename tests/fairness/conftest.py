"""Whoever asks for it gets the hostile client."""

from fairness.attacks import attacker

__all__ = ["attacker"]
