"""`python -m broker` is the command `broker`."""

from .cli.cli import main

main()
