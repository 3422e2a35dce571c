"""`broker completion`: what a shell needs to complete the command line. The completing itself is click's."""

from typing import Final

import click
from click.shell_completion import get_completion_class

from .options import print_out

SHELLS: Final = ("bash", "zsh", "fish")
PROGRAM: Final = "broker"
VARIABLE: Final = "_BROKER_COMPLETE"
"""By which click is asked, as it makes it of the program's name."""


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script for a shell.

    With it TAB completes verbs, options and choices.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    print_out(kind(context.find_root().command, {}, PROGRAM, VARIABLE).source())
