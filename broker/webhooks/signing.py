"""How a post is signed: as Standard Webhooks are, with two secrets while one is being changed.

Pure: time and chance come in as arguments.
"""

from base64 import b64encode
from datetime import UTC, datetime
from typing import Final

from standardwebhooks.webhooks import Webhook

SECRET_BYTES: Final = 32
SECRET_PREFIX: Final = "whsec_"
OVERLAP_SECONDS: Final = 86_400.0
"""For how long the old secret signs beside the new one."""


def secret_of(chance: bytes) -> str:
    """Return random bytes as a secret is written."""
    return SECRET_PREFIX + b64encode(chance).decode()


def signed_headers(secrets: tuple[str, ...], message_id: str, body: bytes, now: float) -> list[tuple[bytes, bytes]]:
    """Return the headers that prove from whom a body comes: of each secret a signature, the newest first.

    ``now`` is seconds since 1970. They are made anew for each attempt: receivers refuse old timestamps.
    """
    text, moment = body.decode(), datetime.fromtimestamp(int(now), UTC)
    signatures = " ".join(Webhook(secret).sign(message_id, moment, text) for secret in secrets)
    return [
        (b"webhook-id", message_id.encode()),
        (b"webhook-timestamp", str(int(now)).encode()),
        (b"webhook-signature", signatures.encode()),
    ]
