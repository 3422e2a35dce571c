"""Making keys, for who keeps them elsewhere than in the configuration (PROTOCOL section 1)."""

import secrets

from .access.keys import ACCOUNT_KEY_PREFIX, OPERATOR_KEY_PREFIX, digest_of


def new_key(*, operator: bool = False) -> str:
    """Return a new key of 256 random bits: an account's or inbox key, or an operator's.

    It is shown to its owner once; to be kept is only its `hash_key`.
    """
    return f"{OPERATOR_KEY_PREFIX if operator else ACCOUNT_KEY_PREFIX}{secrets.token_urlsafe(32)}"


def hash_key(key: str) -> str:
    """Return the SHA-256 of a whole key in lower-case hex: the ``sha256`` of the configuration and of `[access]`."""
    return digest_of(key)
