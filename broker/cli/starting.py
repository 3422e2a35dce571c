"""`broker init`: a first configuration, and its keys and secrets in a file beside it."""

import os
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

import click

from ..config import parse_config
from ..errors import ConfigError
from ..keys import new_key
from .keys import key_lines, new_secret, operator_lines
from .options import CONFIG_NAME, UsageError, json_option, print_json, print_out, program_name, say, tier_option

SECRETS_NAME: Final = "broker.env"
_OWNER_ONLY: Final = 0o600


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".")
@click.option("--account", "account_id", default="acct_demo", show_default=True, help="The account's id.")
@tier_option
@json_option
def init(folder: Path, account_id: str, tier: str | None, *, as_json: bool) -> None:
    """Write a first configuration.

    A commented broker.toml with an account and, beside it, its keys and secrets, into FOLDER (or this one).

    The keys and secrets are readable by you alone, and .gitignore names their file. Nothing is overwritten.
    """
    config_path, secrets_path = folder / CONFIG_NAME, folder / SECRETS_NAME
    if there := [str(path) for path in (config_path, secrets_path) if path.exists()]:
        raise click.ClickException(f"{' and '.join(there)}: there already; nothing was written")
    agent_key, operator_key = new_key(), new_key(operator=True)
    text = initial_config(account_id, tier or "developer", agent_key, operator_key)
    try:
        parse_config(text, {})
    except ConfigError as error:
        raise UsageError(str(error)) from None
    _write(secrets_path, secrets_text(agent_key, operator_key), _OWNER_ONLY)
    _write(config_path, text, 0o666)
    _ignore(folder / ".gitignore")
    if as_json:
        print_json({"config": str(config_path), "secrets": str(secrets_path), "account_id": account_id})
        return
    say(f"wrote {config_path}: {account_id} with one key, and an operator")
    say(f"wrote {secrets_path}: the keys and secrets themselves; .gitignore names it")
    _say_next(folder)


def initial_config(account_id: str, tier: str, agent_key: str, operator_key: str) -> str:
    """Return the text of a first configuration."""
    template = Template(files(__package__).joinpath("initial.toml").read_text(encoding="utf-8"))
    return template.substitute(
        account_id=account_id,
        tier=tier,
        secrets_name=SECRETS_NAME,
        key_lines="\n".join(key_lines("key_agent", agent_key)),
        operator_lines="\n".join(operator_lines("op_main", operator_key)),
    )


def secrets_text(agent_key: str, operator_key: str) -> str:
    """Return the environment that the first configuration's user and the server need, as shells and systemd read it."""
    return f"""\
# Not for version control. `set -a; . ./{SECRETS_NAME}; set +a` gives it to the commands of a shell.
# The key of key_agent, for clients, `broker tail` and `broker publish`:
BROKER_KEY={agent_key}
# The key of op_main, for whoever publishes for all accounts:
BROKER_OPERATOR_KEY={operator_key}
# For the server: what connection tokens are signed with.
BROKER_TOKENS__SECRET={new_secret()}
"""


def _write(path: Path, text: str, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)


def _ignore(path: Path) -> None:
    """Let version control leave the secrets alone."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if SECRETS_NAME not in lines:
        path.write_text("\n".join([*lines, SECRETS_NAME, ""]), encoding="utf-8")


def _say_next(folder: Path) -> None:
    here = "" if folder == Path() else f"cd {folder}\n"
    program = program_name()
    print_out(f"""{here}set -a; . ./{SECRETS_NAME}; set +a
{program} serve                                # here; then, in another terminal, after the same first line:
{program} tail
{program} publish --type message.received --inbox inbox_abc123 --payload '{{"message": {{"subject": "Hello"}}}}'""")
