"""Making and checking keys and secrets: `keys new`, `keys check`, `secrets new`."""

import base64
import json
import re
import secrets as chance
from collections.abc import Collection
from itertools import count
from typing import Any, Final, get_args

import click

from ..access.keys import MAX_CONNECTIONS, TOKEN_PREFIX, Access, Key
from ..config import AccountConfig, Config, parse_config
from ..errors import ConfigError
from ..keys import hash_key, new_key
from ..protocol.names import Scope
from .options import (
    UsageError,
    config_option,
    found_config,
    inbox_option,
    json_option,
    key_option,
    load,
    print_json,
    print_out,
    say,
    scope_option,
    tier_option,
)

SECRET_BYTES: Final = 32
ALL_SCOPES: Final = ("subscribe", "command", "publish")
"""What a key may do unless it is said (PROTOCOL section 1)."""
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")


@click.group()
def keys() -> None:
    """Make keys, and say whose one is."""


@keys.command("new")
@config_option
@click.option("--account", "account_id", default="acct_demo", show_default=True, help="The account it is for.")
@click.option("--id", "key_id", help="The key's own name; left out: key_agent, or the next that is free.")
@tier_option
@inbox_option("An inbox that it reaches (repeat it); left out: all.")
@scope_option("What it may do (repeat it); left out: subscribe, command, publish.")
@click.option("--operator", is_flag=True, help="A key that publishes for any account.")
@json_option
def keys_new(
    config_path: str | None,
    account_id: str,
    key_id: str | None,
    tier: str | None,
    inbox_ids: tuple[str, ...],
    scopes: tuple[str, ...],
    operator: bool,
    *,
    as_json: bool,
) -> None:
    """Print the TOML lines of a new key on standard output, and the key itself, once, on standard error.

    For an account that the configuration holds already these are the key's own lines. With --json all of it is on
    standard output.
    """
    if operator and (tier or inbox_ids or scopes):
        raise UsageError("--tier, --inbox and --scope are for keys of an account, not for an operator's")
    config = load(found_config(config_path))
    key = new_key(operator=operator)
    if operator:
        name = key_id or free_name("op_main", {known.id for known in config.operators})
        lines = operator_lines(name, key)
        _require_loading(lines)
    else:
        account = next((known for known in config.accounts if known.id == account_id), None)
        taken = {known.id for known in account.keys} if account else set()
        name = key_id or free_name("key_agent", taken)
        lines = [*_account_lines(config, account, account_id, tier), *key_lines(name, key, scopes, inbox_ids)]
        if name in taken:
            raise UsageError(f"--id {name}: {account_id} has a key of this name")
        _require_loading(["[[accounts]]", f"id = {json.dumps(account_id)}", *key_lines(name, key, scopes, inbox_ids)])
    if as_json:
        print_json({"id": name, "key": key, "sha256": hash_key(key), "toml": "\n".join(lines)})
        return
    print_out("\n".join(["", *lines]))
    say(f"the key of {name}, shown only now; keep it where secrets are kept: {key}")


def _require_loading(lines: list[str]) -> None:
    """Raise `UsageError` where a configuration with these lines would be refused, by a name that is none."""
    try:
        parse_config("\n".join(lines), {}, source="the lines of this key")
    except ConfigError as error:
        raise UsageError(str(error)) from None


def _account_lines(config: Config, account: AccountConfig | None, account_id: str, tier: str | None) -> list[str]:
    """Return the lines that an account needs before its new key; say where these belong if it is there."""
    if account is None:
        return ["[[accounts]]", f"id = {json.dumps(account_id)}", f'tier = "{tier or "developer"}"', ""]
    if tier is not None:
        raise UsageError(f"--tier is the account's own, and {account_id} is there already: change its `tier`")
    if account is not config.accounts[-1]:
        say(f"these lines belong below {account_id}, before the next [[accounts]]: at the end they would be another's")
    return []


def key_lines(key_id: str, key: str, scopes: Collection[str] = (), inbox_ids: Collection[str] = ()) -> list[str]:
    """Return the TOML lines of an account's key."""
    lines = ["[[accounts.keys]]", f"id = {json.dumps(key_id)}", f'sha256 = "{hash_key(key)}"']
    lines += [f"scopes = {json.dumps(list(scopes or ALL_SCOPES))}"]
    return lines + ([f"inbox_ids = {json.dumps(list(inbox_ids))}"] if inbox_ids else [])


def operator_lines(key_id: str, key: str) -> list[str]:
    """Return the TOML lines of an operator's key."""
    return ["[[operators]]", f"id = {json.dumps(key_id)}", f'sha256 = "{hash_key(key)}"']


def free_name(name: str, taken: Collection[str]) -> str:
    """Return the name, or with the first number that is not taken."""
    return next(free for number in count(1) if (free := name if number == 1 else f"{name}_{number}") not in taken)


@keys.command("check")
@config_option
@key_option
@json_option
def keys_check(config_path: str | None, key: str, *, as_json: bool) -> None:
    """Say whose a key is, and what it may; exit code 1 if the configuration does not hold it."""
    config = load(found_config(config_path))
    access, digest = Access(config), hash_key(key)
    known = access.account_key(digest) or access.operator_key(digest)
    if known is None:
        raise click.ClickException(_unknown(key, config))
    if as_json:
        print_json(_as_document(known))
    else:
        print_out("\n".join(_described(known)))


def _as_document(key: Key) -> dict[str, Any]:
    document: dict[str, Any] = {"id": key.id, "operator": key.is_operator}
    if key.is_operator:
        return document
    reach = None if key.inbox_ids is None else sorted(key.inbox_ids)
    limits = {"tier": key.tier, "max_connections": MAX_CONNECTIONS[key.tier]}
    return document | {"account_id": key.account_id, **limits, "scopes": sorted(key.scopes), "inbox_ids": reach}


def _described(key: Key) -> list[str]:
    if key.is_operator:
        return [f"{key.id}, an operator's key: publishes for any account of the configuration, opens no stream"]
    most = MAX_CONNECTIONS[key.tier]
    reach = "the whole account, with its own events" if key.inbox_ids is None else ", ".join(sorted(key.inbox_ids))
    return [
        f"{key.id} of {key.account_id}, tier {key.tier} ({'any number of' if most is None else most} connections)",
        f"may     {', '.join(scope for scope in get_args(Scope) if scope in key.scopes)}",
        f"reaches {reach}",
    ]


def _unknown(key: str, config: Config) -> str:
    if _SHA256.fullmatch(key):
        return "this is a SHA-256 of a key, not the key itself"
    if key.startswith(TOKEN_PREFIX):
        return "this is a connection token: only a broker that holds the [tokens] secret can say whose it is"
    asked = f"; {config.access.url} would be asked for it" if config.access.url else ""
    return f"the configuration does not hold this key{asked}"


@click.group()
def secrets() -> None:
    """Make secrets."""


@secrets.command("new")
@json_option
def secrets_new(*, as_json: bool) -> None:
    """Print a new secret: for `[access]` and `[commands]`, what their callouts are signed with; also for `[tokens]`."""
    secret = new_secret()
    if as_json:
        print_json({"secret": secret})
    else:
        print_out(secret)


def new_secret() -> str:
    """Return a secret as Standard Webhooks have it: `whsec_` and 256 random bits."""
    return f"whsec_{base64.b64encode(chance.token_bytes(SECRET_BYTES)).decode()}"
