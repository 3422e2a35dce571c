"""The scenes: ordinary life first, then what is lost, refused and commanded."""

from ..stage import SCENES

# Each registers its own, in this order.
# isort: off
from . import events as events
from . import losing as losing
from . import refusing as refusing
from . import commanding as commanding
from . import hooks as hooks
# isort: on

__all__ = ["SCENES"]
