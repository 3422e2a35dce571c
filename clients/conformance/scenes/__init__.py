"""The scenes, in the order of the page."""

from ..stage import SCENES
from . import commanding, events, hooks, losing, refusing  # noqa: F401  # each registers its own

__all__ = ["SCENES"]
