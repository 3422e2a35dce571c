"""`python -m benchmarks`."""

import sys

try:
    from .cli import main
except ModuleNotFoundError as error:
    sys.exit(f"benchmarks: {error}: install the dependency group bench (pip install --group bench)")

if __name__ == "__main__":
    sys.exit(main())
