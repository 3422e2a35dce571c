"""The command line: its verbs, each from the module of its idea (PROTOCOL section 7)."""

from typing import Any, Final

import click

from ..version import __version__
from .asking import publish, send, token
from .completing import completion
from .doctor import doctor
from .health import healthcheck
from .keys import keys, secrets
from .logs import without_credentials
from .options import ended_by_people
from .queues import queues
from .serving import check_config, demo, serve
from .starting import init
from .storage import storage
from .tailing import tail
from .top import top
from .webhooks import webhooks
from .working import work

_VERBS: Final = (
    demo,
    init,
    serve,
    check_config,
    healthcheck,
    keys,
    secrets,
    storage,
    token,
    publish,
    send,
    webhooks,
    queues,
    work,
    tail,
    top,
    doctor,
    completion,
)


class _Verbs(click.Group):
    """Lists the verbs in the order in which one needs them, and lets each end as people are used to."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        with ended_by_people():
            try:
                return super().invoke(ctx)
            except click.ClickException as error:  # which repeats what was typed: a key in the wrong place, too
                vars(error)["message"] = without_credentials(error.message)
                raise


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="broker")
def main() -> None:
    """An event broker for AI agents with e-mail inboxes."""


for _verb in _VERBS:
    main.add_command(_verb)
