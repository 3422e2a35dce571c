"""Which version this is, as the package's metadata says it."""

from importlib.metadata import version
from typing import Final

__version__: Final = version("daimon-broker")
